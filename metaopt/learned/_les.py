"""Learned evolution strategy (LES): attention over candidates in place of a heuristic.

Candidates x_i ~ N(m, diag s²). A single head of self-attention over features F of their fitness
(`_fitness.py`) gives recombination weights, which sum to one,

    A = softmax(Q Kᵀ / √N),    w = softmax(A V),    Q, K, V = affine maps of F to 8, 8, 1 numbers

and a small network gives every coordinate its own learning rates, from evolution paths of the
weighted displacement d = Σ w_i (x_i − m), p <- (1 − c) p + c d for c in (0.1, 0.5, 0.9), from
paths of d/s likewise, and from a clock tanh(t/τ − 1) of the generation t:

    (a, b) = sigmoid(network(p_1, p_2, p_3, q_1, q_2, q_3, clock))
    m <- m + a d,    s <- s + b (√(Σ w_i (x_i − m)² + 1e-8) − s)

Lange et al. 2022, arXiv:2211.11260, §3; sizes, time scales and the root's guard as in the authors'
later code. What differs in the features is said in `_fitness.py`; initial weights are those of a
soft selection by rank, where theirs are random alone. N² memory for the attention.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Params, Scalar, checked
from metaopt.learned._features import init_leaves, working_dtype
from metaopt.learned._fitness import fitness_features, lowest
from metaopt.learned._network import bias, mix
from metaopt.learned._recurrent import dense, dense_init
from metaopt.learned._strategy import (
    LearnedStrategy,
    Strategy,
    around,
    check_population,
    weighted_sum,
)

PATH_RATES = (0.1, 0.5, 0.9)
CLOCK_SCALES = (1, 3, 10, 30, 50, 100, 250, 500, 750, 1000, 1250, 1500, 2000)
NUM_FEATURES, RANK = 3, 1
# Of the first weights. Candidates attend to those of like rank, and the value falls with the rank:
# before any meta-training the strategy already recombines the better candidates.
RANK_OFFSETS = {"key": 4.0, "query": 4.0, "value": -10.0}
NUM_PATHS = 2 * len(PATH_RATES)


class LESSpread(NamedTuple):
    """What a tensor's search carries besides its mean; in the state, each field is a tree.

    Attributes:
        std: standard deviation of candidates.
        paths: of the displacement, one for each rate.
        scaled_paths: of the displacement in standard deviations.
    """

    std: Float[Array, "..."]
    paths: Float[Array, "3 ..."]
    scaled_paths: Float[Array, "3 ..."]


class LESState(NamedTuple):
    """Generations so far, lowest fitness so far, centre and spread of the search."""

    count: Int[Array, ""]
    best: Float[Array, ""]
    mean: Params
    spread: LESSpread


@checked
def les(*, population_size: int, sigma: Scalar = 1.0, hidden_size: int = 8) -> LearnedStrategy:
    """An evolution strategy whose recombination and learning rates are learned: 246 numbers.

    It can be used with another population size, dimension or horizon than it was meta-trained
    with. Displacements enter the network in the units of the search space, so that is best scaled
    as in meta-training.

    Args:
        population_size: candidates N per generation. Static.
        sigma: standard deviation of the first generation. Traced.
        hidden_size: width of keys, queries and the network's hidden layer. Static.

    Returns:
        A learned strategy. `theta` is `{"key", "query", "value", "hidden", "mean_rate",
        "std_rate"}`, each an affine map `{"w", "b"}`; inputs of "hidden" are the three paths, the
        three scaled paths and the thirteen clocks. Standard deviations and paths are float32 at
        least; memory besides the population is eight numbers per parameter.

    Raises:
        ValueError: if `population_size < 2` or `hidden_size < 1`.
    """
    check_population("les", population_size)
    if hidden_size < 1:
        raise ValueError(f"les: hidden_size={hidden_size} is below 1; use a positive width.")
    sizes = {
        "key": (NUM_FEATURES, hidden_size),
        "query": (NUM_FEATURES, hidden_size),
        "value": (NUM_FEATURES, 1),
        "hidden": (NUM_PATHS + len(CLOCK_SCALES), hidden_size),
        "mean_rate": (hidden_size, 1),
        "std_rate": (hidden_size, 1),
    }

    def init_theta(key):
        keys = jax.random.split(key, len(sizes))
        theta = {
            name: dense_init(k, *size) for (name, size), k in zip(sizes.items(), keys, strict=True)
        }
        for name, offset in RANK_OFFSETS.items():
            theta[name]["w"] = theta[name]["w"].at[RANK].add(offset)
        return theta

    def init(params, key):
        del key
        best = jnp.full((), jnp.inf, jnp.result_type(float))
        spread = init_leaves(lambda param: _start(param, sigma), params)
        return LESState(jnp.zeros((), jnp.int32), best, params, spread)

    def ask(state, key):
        return around(state.mean, state.spread.std, key, population_size), state

    def strategy(theta):
        def tell(state, population, fitness, key):
            del key
            return _tell(theta, state, population, fitness.astype(state.best.dtype))

        return Strategy(init, ask, tell)

    return LearnedStrategy(init_theta, strategy)


def recombination_weights(
    theta: PyTree, features: Float[Array, "n features"]
) -> Float[Array, " n"]:
    """Positive weights that sum to one; permuting candidates permutes them."""
    keys, queries = dense(theta["key"], features), dense(theta["query"], features)
    logits = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
    attention = jax.nn.softmax(logits * features.shape[0] ** -0.5, axis=-1)
    values = dense(theta["value"], features)
    scores = jnp.matmul(attention, values, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.softmax(scores[:, 0])


def _start(param: Array, sigma: Scalar) -> LESSpread:
    dtype = working_dtype(param)
    paths = jnp.zeros((len(PATH_RATES), *param.shape), dtype)
    return LESSpread(jnp.full(param.shape, sigma, dtype), paths, paths)


def _tell(theta, state: LESState, population: PyTree, fitness: Array) -> LESState:
    features = fitness_features(fitness, state.best)
    weights = recombination_weights(_cast(theta, features.dtype), features)
    means, treedef = jax.tree.flatten(state.mean)
    candidates = treedef.flatten_up_to(population)
    spreads = zip(*(treedef.flatten_up_to(field) for field in state.spread), strict=True)
    results = [
        _move(theta, mean, LESSpread(*spread), x, weights, state.count)
        for mean, x, spread in zip(means, candidates, spreads, strict=True)
    ]
    fields = zip(*(spread for _, spread in results), strict=True)
    return LESState(
        count=state.count + 1,
        # Only now: "better than the best so far" refers to earlier generations.
        best=lowest(state.best, fitness),
        mean=treedef.unflatten([mean for mean, _ in results]),
        spread=LESSpread(*(treedef.unflatten(field) for field in fields)),
    )


def _move(theta, mean, spread: LESSpread, candidates, weights, count) -> tuple[Array, LESSpread]:
    """One generation of one tensor."""
    dtype = spread.std.dtype
    theta = _cast(theta, dtype)
    weights, away = weights.astype(dtype), candidates.astype(dtype) - mean.astype(dtype)[None]
    displacement = weighted_sum(weights, away)
    paths = _follow(spread.paths, displacement)
    scaled_paths = _follow(spread.scaled_paths, displacement / spread.std)
    mean_rate, std_rate = _rates(theta, jnp.concatenate([paths, scaled_paths]), count)
    # Guarded inside the root, so that no standard deviation can reach 0.
    found = jnp.sqrt(weighted_sum(weights, jnp.square(away)) + 1e-8)
    std = spread.std + std_rate * (found - spread.std)
    moved = (mean.astype(dtype) + mean_rate * displacement).astype(mean.dtype)
    return moved, LESSpread(std, paths, scaled_paths)


def _cast(theta, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), theta)


def _follow(paths: Float[Array, "3 ..."], displacement: Array) -> Float[Array, "3 ..."]:
    rates = jnp.asarray(PATH_RATES, paths.dtype).reshape(-1, *[1] * displacement.ndim)
    return (1 - rates) * paths + rates * displacement[None]


def _rates(theta, planes: Float[Array, "6 ..."], count) -> tuple[Array, Array]:
    """Learning rates of mean and standard deviation, for every coordinate."""
    scales = jnp.asarray(CLOCK_SCALES, planes.dtype)
    clock = jnp.tanh(count.astype(planes.dtype) / scales - 1)
    weights, offset = theta["hidden"]["w"], theta["hidden"]["b"]
    # The clock is the same for all coordinates, so it only shifts the bias.
    offset = offset + mix(weights[NUM_PATHS:], clock)
    hidden = jax.nn.relu(mix(weights[:NUM_PATHS], planes) + bias(offset, planes))
    heads = (theta["mean_rate"], theta["std_rate"])
    a, b = (jax.nn.sigmoid(mix(head["w"], hidden) + bias(head["b"], hidden))[0] for head in heads)
    return a, b
