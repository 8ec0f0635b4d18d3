"""Learned genetic algorithm (LGA): attention in place of heuristic genetic operators.

N parents e_j, each with fitness, mutation strength s_j and age, bear N children, that of the i-th
drawn parent j(i) being

    x_i = e_j(i) + s'_i ε_i,    s'_i = s_j(i) exp(v_i / 2),    j(i) ~ softmax(sampling(F, age))
    v = mutation(F of the drawn parents, z-score of s, s scaled to [-1, 1])

and every parent is replaced by a drawn child, or kept with logit 1:

    r_j ~ softmax([Q_j · K_1 / 4, ..., Q_j · K_N / 4, 1]),    Q, K = selection(F of both)

F are features of fitness (`_fitness.py`), among parents and children together for the selection;
ages enter as tanh(age / generation − 1). `sampling` and `mutation` are self-attention (two heads,
16 features) with an affine map to one number; in `selection`, parents attend to children likewise.
The first generation is the initial population itself. Lange et al. 2023, arXiv:2304.03995, §3;
sizes as in the authors' later code. Differs from that code: the z-score of strengths is among the
population, where theirs is of each strength alone and so 0; a child whose fitness is not finite is
never selected. Draws are discrete: meta-gradients by backpropagation miss what they depend on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metaopt import tree
from metaopt.core import Params, Scalar, checked
from metaopt.learned._fitness import fitness_features, lowest, to_unit_range, z_score
from metaopt.learned._recurrent import dense, dense_init
from metaopt.learned._strategy import LearnedStrategy, Strategy, around, check_population

NUM_FEATURES = 3
NUM_HEADS = 2
WIDTH = 16
KEEP_LOGIT = 1.0


class LGAState(NamedTuple):
    """The parents, and how strongly the children that were asked for are mutated.

    Attributes:
        count: generations so far.
        best: lowest fitness of a parent so far.
        parents: a tree with the parents on the leading axis.
        fitness: of the parents.
        strengths: their mutation strengths, in units of the search space.
        ages: generations that they have survived.
        child_strengths: mutation strengths of the children that were asked for last.
    """

    count: Int[Array, ""]
    best: Float[Array, ""]
    parents: Params
    fitness: Float[Array, " n"]
    strengths: Float[Array, " n"]
    ages: Float[Array, " n"]
    child_strengths: Float[Array, " n"]


@checked
def lga(*, population_size: int, sigma: Scalar = 1.0) -> LearnedStrategy:
    """A genetic algorithm whose sampling, mutation rates and selection are learned.

    Args:
        population_size: parents N, and children per generation. Static.
        sigma: standard deviation of the initial population around its start, and the first
            mutation strength. Traced.

    Returns:
        A learned strategy. `theta` is `{"sampling": {"query", "key", "value", "out", "logit"},
        "mutation": {..., "log_variance"}, "selection": {..., "parent", "child"}}` of affine maps
        `{"w", "b"}`: 1906 numbers.

    Raises:
        ValueError: if `population_size < 2`.
    """
    check_population("lga", population_size)

    def init(params, key):
        dtype = jnp.result_type(float)
        strengths = jnp.full(population_size, sigma, dtype)
        std = jax.tree.map(lambda _: jnp.full((), sigma, dtype), params)
        return LGAState(
            count=jnp.zeros((), jnp.int32),
            best=jnp.full((), jnp.inf, dtype),
            parents=around(params, std, key, population_size),
            fitness=jnp.zeros(population_size, dtype),
            strengths=strengths,
            ages=jnp.zeros(population_size, dtype),
            child_strengths=strengths,
        )

    def strategy(theta):
        def ask(state, key):
            return _ask(_cast(theta, state.fitness.dtype), state, key)

        def tell(state, population, fitness, key):
            dtype = state.fitness.dtype
            return _tell(_cast(theta, dtype), state, population, fitness.astype(dtype), key)

        return Strategy(init, ask, tell)

    return LearnedStrategy(_init_theta, strategy)


def _init_theta(key: PRNGKeyArray) -> PyTree:
    inputs = {
        "sampling": {"features": NUM_FEATURES + 1, "logit": (WIDTH, 1)},
        "mutation": {"features": NUM_FEATURES + 2, "log_variance": (WIDTH, 1)},
        "selection": {
            "features": NUM_FEATURES,
            "parent": (WIDTH, WIDTH),
            "child": (NUM_FEATURES, WIDTH),
        },
    }
    theta = {}
    for index, (name, sizes) in enumerate(inputs.items()):
        features = sizes.pop("features")
        sizes = {
            **{part: (features, WIDTH) for part in ("query", "key", "value")},
            "out": (WIDTH, WIDTH),
            **sizes,
        }
        keys = jax.random.split(jax.random.fold_in(key, index), len(sizes))
        theta[name] = {
            part: dense_init(k, *size) for (part, size), k in zip(sizes.items(), keys, strict=True)
        }
    return theta


def attend(
    theta: PyTree, queries: Float[Array, "n features"], others: Float[Array, "m features"]
) -> Float[Array, "n 16"]:
    """Attention with two heads of eight features each, mixed by an affine map."""

    def heads(name, x):
        return dense(theta[name], x).reshape(len(x), NUM_HEADS, WIDTH // NUM_HEADS)

    q, k, v = heads("query", queries), heads("key", others), heads("value", others)
    highest = jax.lax.Precision.HIGHEST
    logits = jnp.einsum("nhd,mhd->hnm", q, k, precision=highest) * (WIDTH // NUM_HEADS) ** -0.5
    mixed = jnp.einsum("hnm,mhd->nhd", jax.nn.softmax(logits), v, precision=highest)
    return dense(theta["out"], mixed.reshape(len(queries), WIDTH))


def sampling_logits(theta: PyTree, state: LGAState) -> Float[Array, " n"]:
    """Of the categorical distribution over parents that children are drawn from."""
    # The population that was evaluated first is generation 0; it was told, so the count is 1.
    generation = jnp.maximum(state.count - 1, 0).astype(state.ages.dtype)
    clock = jnp.tanh(state.ages / (generation + 1e-8) - 1)
    features = fitness_features(state.fitness, state.best)
    features = jnp.concatenate([features, clock[:, None]], axis=1)
    return dense(theta["logit"], attend(theta, features, features))[:, 0]


def mutated_strengths(
    theta: PyTree, strengths: Float[Array, " n"], features: Float[Array, "n features"]
) -> Float[Array, " n"]:
    """The children's mutation strengths, from those of the parents drawn for them."""
    own = jnp.stack([z_score(strengths), to_unit_range(strengths)], axis=1)
    features = jnp.concatenate([features, own], axis=1)
    log_variance = dense(theta["log_variance"], attend(theta, features, features))[:, 0]
    return strengths * jnp.exp(0.5 * log_variance)


def selection_logits(
    theta: PyTree, parents: Float[Array, "n features"], children: Float[Array, "m features"]
) -> Float[Array, "n m_plus_1"]:
    """For every parent, of each child in its place, and last of keeping it."""
    queries = dense(theta["parent"], attend(theta, parents, children))
    keys = dense(theta["child"], children)
    logits = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST) * WIDTH**-0.5
    keep = jnp.full((len(parents), 1), KEEP_LOGIT, logits.dtype)
    return jnp.concatenate([logits, keep], axis=1)


def _ask(theta, state: LGAState, key: PRNGKeyArray) -> tuple[PyTree, LGAState]:
    key_draw, key_noise = jax.random.split(key)
    logits = sampling_logits(theta["sampling"], state)
    drawn = jax.random.categorical(key_draw, logits, shape=(len(logits),))
    features = fitness_features(state.fitness[drawn], state.best)
    strengths = mutated_strengths(theta["mutation"], state.strengths[drawn], features)
    noise = tree.sample_normal(state.parents, key_noise)

    def bear(parents, noise):
        scale = strengths.reshape(-1, *[1] * (parents.ndim - 1))
        return (parents[drawn] + scale * noise).astype(parents.dtype)

    children = jax.tree.map(bear, state.parents, noise)
    first = state.count == 0
    return (
        tree.where(first, state.parents, children),
        state._replace(child_strengths=jnp.where(first, state.strengths, strengths)),
    )


def _tell(theta, state: LGAState, population, fitness, key) -> LGAState:
    size = len(fitness)
    features = fitness_features(jnp.concatenate([fitness, state.fitness]), state.best)
    logits = selection_logits(theta["selection"], features[size:], features[:size])
    usable = jnp.append(jnp.isfinite(fitness), True)
    logits = jnp.where(usable[None], logits, -jnp.inf)
    chosen = jax.random.categorical(key, logits, axis=1)
    # The first generation takes the parents' places, whatever its fitness: they are the same.
    chosen = jnp.where(state.count == 0, jnp.arange(size), chosen)
    kept = chosen == size
    child = jnp.minimum(chosen, size - 1)

    def replace(parents, children):
        return jnp.where(kept.reshape(-1, *[1] * (parents.ndim - 1)), parents, children[child])

    survivors = replace(state.fitness, fitness)
    return LGAState(
        count=state.count + 1,
        best=lowest(state.best, survivors),
        parents=jax.tree.map(replace, state.parents, population),
        fitness=survivors,
        strengths=replace(state.strengths, state.child_strengths),
        ages=jnp.where(kept, state.ages + 1, 0),
        child_strengths=state.child_strengths,
    )


def _cast(theta, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), theta)
