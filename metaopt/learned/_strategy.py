"""The contract of search without gradients, and two strategies that learned ones compete with.

    population, state = ask(state, key);    state = tell(state, population, fitness, key)

`isotropic_es` is the (μ/μ_w, N) evolution strategy with one step size that decays on a schedule:

    x_i = m + σ ε_i,    m <- m + learning_rate Σ_i w_i (x_i − m),    σ <- decay · σ,
    w_i ∝ max(0, ln((N + 1)/2) − ln rank_i)

with ranks from 1, the best (weights: Hansen 2016, arXiv:1604.00772, §2.2, without their negative
half). Candidates of equal fitness share their mean rank.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt import tree
from metaopt.core import Params, Scalar, checked
from metaopt.learned._fitness import centred_ranks, finite_fitness


class Strategy(NamedTuple):
    """A search over any tree of arrays that sees values of a function only, and minimises it.

    Attributes:
        init: `(params, key) -> state`. The search starts around `params`.
        ask: `(state, key) -> (population, state)`; a population is a tree like the parameters with
            the candidates on a new leading axis, in the dtypes of the parameters.
        tell: `(state, population, fitness, key) -> state`; one number per candidate, lower is
            better, and one that is not finite counts as the worst.
    """

    init: Callable[[Params, PRNGKeyArray], Any]
    ask: Callable[[Any, PRNGKeyArray], tuple[PyTree, Any]]
    tell: Callable[[Any, PyTree, Float[Array, " population"], PRNGKeyArray], Any]


class LearnedStrategy(NamedTuple):
    """A strategy with meta-parameters.

    Attributes:
        init: `(key) -> theta`.
        strategy: `(theta) -> Strategy`.
    """

    init: Callable[[PRNGKeyArray], PyTree]
    strategy: Callable[[PyTree], Strategy]


class IsotropicESState(NamedTuple):
    """Centre and scale of the search."""

    mean: Params
    sigma: Float[Array, ""]


class RandomSearchState(NamedTuple):
    """A tree like the parameters, for structure, shapes and dtypes only."""

    like: Params


@checked
def isotropic_es(
    *,
    population_size: int,
    sigma: Scalar = 1.0,
    learning_rate: Scalar = 1.0,
    decay: Scalar = 0.95,
) -> Strategy:
    """The evolution strategy with one step size, on an exponential schedule.

    Args:
        population_size: candidates N per generation. Static.
        sigma: standard deviation of the first generation. Traced.
        learning_rate: how far the mean goes towards the weighted mean of the candidates. Traced.
        decay: factor of σ per generation. Traced.

    Returns:
        A strategy.

    Raises:
        ValueError: if `population_size < 2`.
    """
    check_population("isotropic_es", population_size)

    def init(params, key):
        del key
        return IsotropicESState(params, jnp.full((), sigma, jnp.result_type(float)))

    def ask(state, key):
        std = jax.tree.map(lambda _: state.sigma, state.mean)
        return around(state.mean, std, key, population_size), state

    def tell(state, population, fitness, key):
        del key
        fitness = finite_fitness(fitness.astype(state.sigma.dtype))
        ranks = (centred_ranks(fitness) + 0.5) * (population_size - 1) + 1
        weights = jax.nn.relu(jnp.log((population_size + 1) / 2) - jnp.log(ranks))
        # All weights are 0 where all candidates are equal.
        total = jnp.sum(weights)
        weights = jnp.where(total > 0, weights, 1) / jnp.where(total > 0, total, population_size)

        def move(mean, candidates):
            away = (candidates - mean[None]).astype(weights.dtype)
            return (mean + learning_rate * weighted_sum(weights, away)).astype(mean.dtype)

        mean = jax.tree.map(move, state.mean, population)
        return IsotropicESState(mean, (decay * state.sigma).astype(state.sigma.dtype))

    return Strategy(init, ask, tell)


@checked
def random_search(*, population_size: int, low: Scalar = -5.0, high: Scalar = 5.0) -> Strategy:
    """Independent candidates, uniform in a box; nothing is learned from their fitness.

    Args:
        population_size: candidates per generation. Static.
        low: lower end of every coordinate. Traced.
        high: upper end. Traced.

    Returns:
        A strategy.

    Raises:
        ValueError: if `population_size < 2`.
    """
    check_population("random_search", population_size)

    def ask(state, key):
        leaves, treedef = jax.tree.flatten(state.like)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            jax.random.uniform(k, (population_size, *x.shape), x.dtype, low, high)
            for x, k in zip(leaves, keys, strict=True)
        ]
        return treedef.unflatten(drawn), state

    return Strategy(
        lambda params, key: RandomSearchState(params),
        ask,
        lambda state, population, fitness, key: state,
    )


def check_population(name: str, population_size: int) -> None:
    """Raises ValueError for a population in which nothing can be ranked."""
    if population_size < 2:
        raise ValueError(
            f"{name}: population_size={population_size} is below 2; candidates are compared with "
            "each other, so use at least 2."
        )


def around(mean: PyTree, std: PyTree, key: PRNGKeyArray, population_size: int) -> PyTree:
    """Normal candidates, in the dtypes of `mean`; `std` is a tree like it, or one of scalars."""
    stacked = jax.tree.map(lambda x: jnp.zeros((population_size, *x.shape), x.dtype), mean)
    noise = tree.sample_normal(stacked, key)

    def place(mean, std, noise):
        spread = jnp.broadcast_to(std, mean.shape)[None] * noise
        return (mean[None] + spread).astype(mean.dtype)

    return jax.tree.map(place, mean, std, noise)


def weighted_sum(weights: Float[Array, " n"], values: Float[Array, "n ..."]) -> Array:
    """`Σ_i w_i x_i`, in full precision on accelerators too."""
    return jnp.tensordot(weights, values, axes=(0, 0), precision=jax.lax.Precision.HIGHEST)
