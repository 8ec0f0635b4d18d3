"""Hypergradients of methods that solve their linear system anew in every estimate.

    u = P ∇_z f with P ≈ H⁻¹,    direction = ∇_θ f − J u        (H u = ∇_z f)

P is a truncated Neumann series, or one random term of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metaopt import tree
from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar
from metaopt.estimators._bilevel import (
    Count,
    Data,
    Theta,
    begin,
    decayed,
    descend,
    finish,
    hessian_product,
    inner_descent,
    linearise,
    outer_gradients,
    replay,
)
from metaopt.estimators._checked import checked_estimator


class DoubleLoopState(NamedTuple):
    """What a method carries that solves its linear system anew each time.

    Attributes:
        params: the inner variable.
        count: estimates so far.
    """

    params: Params
    count: Int[Array, ""]


# Inverses of H, as (params, theta, vector, data, key) -> (u, Hessian products taken) ------------

Inverse = Callable[..., tuple[Params, Count]]


def neumann(problem: BilevelProblem, *, step_size: Scalar, num_terms: int) -> Inverse:
    """η Σ_{q ≤ Q} Π_{i ≤ q} (I − η H_i) b: the truncated Neumann series on fresh batches.

    It falls short of H⁻¹ b by (I − η H)^{Q+1} H⁻¹ b and needs η < 2/λ_max(H). Q products for its Q
    + 1 terms.
    """

    def inverse(params, theta, vector, data, key):
        at = replay(key)

        def one(carry, index):
            term, total = carry
            product = hessian_product(problem, params, theta, term, data, at(index))
            term = descend(term, step_size, product)
            return (term, optax.tree.add(total, term)), None

        (_, total), _ = jax.lax.scan(one, (vector, vector), jnp.arange(num_terms))
        return tree.cast_like(optax.tree.scale(step_size, total), vector), num_terms

    return inverse


def random_neumann(problem: BilevelProblem, *, step_size: Scalar, num_terms: int) -> Inverse:
    """Q η Π_{i ≤ q} (I − η H_i) b with q uniform on {0, …, Q − 1}.

    One term of the series of Q terms, drawn at random: unbiased for that sum at half of its
    products, and of far larger variance.
    """

    def inverse(params, theta, vector, data, key):
        key_length, key_terms = jax.random.split(key)
        length = jax.random.randint(key_length, (), 0, num_terms)
        at = replay(key_terms)

        def one(index, term):
            product = hessian_product(problem, params, theta, term, data, at(index))
            return descend(term, step_size, product)

        term = jax.lax.fori_loop(0, length, one, vector)
        return tree.cast_like(optax.tree.scale(num_terms * step_size, term), vector), length

    return inverse


# Directions -----------------------------------------------------------------------------------


class Implicit(NamedTuple):
    """A hypergradient on sampled batches: its loss, the direction, Hessian products taken."""

    loss: Float[Array, ""]
    direction: Theta
    products: Count


def implicit_direction(
    problem: BilevelProblem,
    inverse: Inverse,
    params: Params,
    theta: Theta,
    data: Data,
    key_outer: PRNGKeyArray,
    key_system: PRNGKeyArray,
    key_cross: PRNGKeyArray,
) -> Implicit:
    """∇_θ f − J u with u = `inverse` of ∇_z f: one outer gradient and one mixed product besides."""
    loss, (outer_params, outer_theta) = outer_gradients(problem, params, theta, data, key_outer)
    u, products = inverse(params, theta, outer_params, data, key_system)
    _, pullback = linearise(problem, params, theta, data, key_cross)
    return Implicit(loss, optax.tree.sub(outer_theta, pullback(u)[1]), products)


def both_directions(
    problem: BilevelProblem,
    inverse: Inverse,
    params: Params,
    theta: Theta,
    data: Data,
    key: PRNGKeyArray,
) -> tuple[tuple[Params, Theta], Implicit]:
    """(∇_z g, ∇_θ f − J u) at one point, each on fresh batches that `key` stands for."""
    key_inner, *keys = jax.random.split(key, 4)
    inner = jax.grad(problem.inner_loss)(params, theta, data, key_inner)
    implicit = implicit_direction(problem, inverse, params, theta, data, *keys)
    return (inner, implicit.direction), implicit


def recursive_momentum(new: Any, old: Any, previous: Any, *, weight: Scalar) -> Any:
    """new + (1 − weight) (previous − old): STORM, and SPIDER at weight 0.

    `new` and `old` are evaluated on one batch, at this and at the last point; `previous` is the
    last result.
    """
    correction = optax.tree.sub(previous, old)
    return tree.cast_like(optax.tree.add_scale(new, 1 - weight, correction), previous)


def momentum_weight(value: Scalar, count: Int[Array, ""], exponent: Scalar) -> Float[Array, ""]:
    """1 in the first estimate, which has no past, then value / (count + 1)^exponent."""
    return jnp.where(count == 0, 1, decayed(value, count, exponent))


def double_loop(
    name: str,
    problem: BilevelProblem,
    inverse: Inverse,
    *,
    step_size: Scalar,
    step_exponent: Scalar,
    num_steps: int,
    reuse_batch: bool = False,
) -> Estimator:
    """Descends in z, then takes the hypergradient there with `inverse`.

    With `reuse_batch` the mixed product is on the batch of the first inner step.
    """

    def init(theta, data, key):
        del data
        return DoubleLoopState(*begin(problem, key))

    def estimate(theta, state, data, key):
        key_inner, key_outer, key_system, key_cross = jax.random.split(key, 4)
        if reuse_batch:
            key_cross = replay(jax.random.clone(key_inner))(0)
        step = decayed(step_size, state.count, step_exponent)
        params = inner_descent(
            problem, state.params, theta, data, key_inner, step_size=step, num_steps=num_steps
        )
        implicit = implicit_direction(
            problem, inverse, params, theta, data, key_outer, key_system, key_cross
        )
        return finish(
            theta,
            state,
            state._replace(params=params),
            implicit.direction,
            implicit.loss,
            Oracles(num_steps, 1, implicit.products, 1),
            inner_steps=num_steps,
        )

    return checked_estimator(name, init, estimate)
