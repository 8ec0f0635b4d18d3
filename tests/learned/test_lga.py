import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from metaopt.learned import lga
from metaopt.learned._fitness import fitness_features
from metaopt.learned._lga import mutated_strengths, sampling_logits, selection_logits
from tests.helpers import ravel, standard_errors

SIZE = 6
FITNESS = jnp.array([3.0, 1.0, 2.5, 9.0, 5.0, 2.0])


def random_theta(seed=0):
    theta = lga(population_size=SIZE).init(jax.random.key(seed))
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return treedef.unflatten(
        [0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def evaluated(theta, params, *, size=SIZE, sigma=0.7, fitness=FITNESS):
    """A strategy, and its state after the initial population was told."""
    strategy = lga(population_size=size, sigma=sigma).strategy(theta)
    state = strategy.init(params, jax.random.key(0))
    population, state = strategy.ask(state, jax.random.key(1))
    return strategy, strategy.tell(state, population, fitness, jax.random.key(2))


def prefers_better_children(strength=1e3):
    """Selection whose logits fall steeply with a child's rank among parents and children."""
    theta = jax.tree.map(jnp.zeros_like, random_theta())
    theta["selection"]["parent"]["b"] = jnp.ones(16)
    theta["selection"]["child"]["w"] = theta["selection"]["child"]["w"].at[1].set(-strength)
    return theta


def affine(theta, x):
    return x @ np.asarray(theta["w"]) + np.asarray(theta["b"])


def numpy_attention(theta, queries, others):
    """Head by head."""
    q, k, v = (
        affine(theta[n], x) for n, x in (("query", queries), ("key", others), ("value", others))
    )
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        weights = scipy.special.softmax(q[:, head] @ k[:, head].T / np.sqrt(8), axis=1)
        heads.append(weights @ v[:, head])
    return affine(theta["out"], np.concatenate(heads, axis=1))


@pytest.mark.compiles
def test_the_three_operators_repeat_a_transcription_in_numpy(x64):
    theta = random_theta()
    _, state = evaluated(theta, jnp.zeros(2))
    state = state._replace(
        count=jnp.array(5), ages=jnp.array([0.0, 4, 2, 1, 0, 3]), best=jnp.array(1.0)
    )
    features = np.asarray(fitness_features(FITNESS.astype(float), jnp.array(1.0)))
    clock = np.tanh(np.array([0.0, 4, 2, 1, 0, 3]) / 4 - 1)
    inputs = np.concatenate([features, clock[:, None]], axis=1)
    expected = affine(
        theta["sampling"]["logit"], numpy_attention(theta["sampling"], inputs, inputs)
    )[:, 0]
    actual = sampling_logits(theta["sampling"], state)
    np.testing.assert_allclose(actual, expected, rtol=1e-7)

    strengths = np.array([0.3, 1.0, 2.0, 0.1, 0.5, 0.3])
    z = (strengths - strengths.mean()) / strengths.std()
    in_range = 2 * (strengths - 0.1) / 1.9 - 1
    inputs = np.concatenate([features, np.stack([z, in_range], axis=1)], axis=1)
    mutation = theta["mutation"]
    log_variance = affine(mutation["log_variance"], numpy_attention(mutation, inputs, inputs))
    actual = mutated_strengths(mutation, jnp.asarray(strengths), jnp.asarray(features))
    np.testing.assert_allclose(actual, strengths * np.exp(log_variance[:, 0] / 2), rtol=1e-8)

    selection = theta["selection"]
    children = features[::-1][:4]
    queries = affine(selection["parent"], numpy_attention(selection, features, children))
    logits = queries @ affine(selection["child"], children).T / 4
    actual = selection_logits(selection, jnp.asarray(features), jnp.asarray(children))
    np.testing.assert_allclose(actual[:, :4], logits, rtol=1e-9)
    np.testing.assert_array_equal(actual[:, 4], np.ones(SIZE))


def test_operators_follow_the_implementation_of_evosax():
    tools = pytest.importorskip("evosax.learned_evolution.lga_tools")
    theta = random_theta()
    # There, the z-score of each mutation strength is taken alone, and so is 0.
    for part in ("query", "key", "value"):
        weights = theta["mutation"][part]["w"]
        theta["mutation"][part]["w"] = weights.at[3].set(0.0)

    def attention(part):
        heads = {
            n: {"kernel": part[n]["w"].reshape(-1, 2, 8), "bias": part[n]["b"].reshape(2, 8)}
            for n in ("query", "key", "value")
        }
        out = {"kernel": part["out"]["w"].reshape(2, 8, 16), "bias": part["out"]["b"]}
        return {**heads, "out": out}

    def layers(part, kind, *names):
        own = {
            f"Dense_{i}": {"kernel": part[n]["w"], "bias": part[n]["b"]}
            for i, n in enumerate(names)
        }
        return {"params": {f"MultiHead{kind}Attention_0": attention(part), **own}}

    _, state = evaluated(theta, jnp.zeros(2))
    state = state._replace(count=jnp.array(5), ages=jnp.array([0.0, 4, 2, 1, 0, 3]))
    features = fitness_features(FITNESS, jnp.array(2.2))
    clock = tools.tanh_age(state.ages, 4 + 1e-8)
    inputs = jnp.concatenate([fitness_features(FITNESS, state.best), clock[:, None]], axis=1)
    sampling = tools.SamplingAttention(2, 16)
    expected = sampling.apply(layers(theta["sampling"], "Self", "logit"), inputs)
    actual = jax.nn.softmax(sampling_logits(theta["sampling"], state))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)

    strengths = jnp.array([0.3, 1.0, 2.0, 0.1, 0.5, 0.3])
    mutation = tools.MutationAttention(2, 16)
    expected = mutation.apply(
        layers(theta["mutation"], "Self", "log_variance"), strengths[:, None], features
    )
    actual = mutated_strengths(theta["mutation"], strengths, features)
    np.testing.assert_allclose(actual, expected[:, 0], rtol=1e-4)

    # Only draws are public there: with logits far apart they are the largest ones.
    steep = theta["selection"] | {
        name: jax.tree.map(lambda x: 30 * x, theta["selection"][name])
        for name in ("parent", "child")
    }
    selection = tools.SelectionAttention(2, 16)
    children, parents = features[:4], features
    drawn = selection.apply(
        layers(steep, "Cross", "parent", "child"), jax.random.key(0), children, parents
    )
    logits = selection_logits(steep, parents, children)
    best = jnp.sort(logits, axis=1)
    assert (best[:, -1] - best[:, -2] > 20).all()
    expected = jax.nn.one_hot(jnp.argmax(logits, axis=1), 5)[:, :4]
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.compiles
def test_permuting_the_population_permutes_the_operators(x64):
    theta, order = random_theta(), jnp.array([3, 1, 5, 0, 2, 4])
    _, state = evaluated(theta, jnp.zeros(2))
    state = state._replace(ages=jnp.arange(6.0), count=jnp.array(9))
    permuted = state._replace(fitness=state.fitness[order], ages=state.ages[order])
    logits = sampling_logits(theta["sampling"], state)
    np.testing.assert_allclose(
        sampling_logits(theta["sampling"], permuted), logits[order], rtol=1e-9
    )
    features = fitness_features(FITNESS.astype(float), jnp.array(2.2))
    strengths = jnp.linspace(0.1, 1.0, SIZE)
    plain = mutated_strengths(theta["mutation"], strengths, features)
    shuffled = mutated_strengths(theta["mutation"], strengths[order], features[order])
    np.testing.assert_allclose(shuffled, plain[order], rtol=1e-9)
    plain = selection_logits(theta["selection"], features, features[:4])
    shuffled = selection_logits(theta["selection"], features[order], features[:4])
    np.testing.assert_allclose(shuffled, plain[order], rtol=1e-9)


@pytest.mark.compiles
def test_the_first_generation_is_the_initial_population():
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    strategy = lga(population_size=SIZE, sigma=0.7).strategy(random_theta())
    state = strategy.init(params, jax.random.key(0))
    population, state = strategy.ask(state, jax.random.key(1))
    told = strategy.tell(state, population, FITNESS.at[2].set(jnp.nan), jax.random.key(2))
    for name in params:
        np.testing.assert_array_equal(population[name], state.parents[name])
        np.testing.assert_array_equal(told.parents[name], state.parents[name])
    np.testing.assert_array_equal(told.fitness, FITNESS.at[2].set(jnp.nan))
    np.testing.assert_allclose(told.strengths, 0.7, rtol=1e-6)
    assert told.best == 1.0


@pytest.mark.compiles
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_parents_are_kept_when_no_child_has_a_finite_fitness(value):
    theta = random_theta()
    strategy, state = evaluated(theta, jnp.zeros(2))
    population, state = strategy.ask(state, jax.random.key(3))
    new = strategy.tell(state, population, jnp.full(SIZE, value), jax.random.key(4))
    np.testing.assert_array_equal(new.parents, state.parents)
    np.testing.assert_array_equal(new.fitness, state.fitness)
    np.testing.assert_array_equal(new.strengths, state.strengths)
    np.testing.assert_array_equal(new.ages, state.ages + 1)


@pytest.mark.compiles
def test_selection_by_rank_keeps_parents_of_worse_children_and_takes_better_ones():
    strategy, state = evaluated(prefers_better_children(), jnp.zeros(2))
    population, state = strategy.ask(state, jax.random.key(3))
    worse = strategy.tell(state, population, FITNESS + 100, jax.random.key(4))
    np.testing.assert_array_equal(worse.parents, state.parents)
    np.testing.assert_array_equal(worse.ages, np.ones(SIZE))
    better = strategy.tell(state, population, FITNESS - 100, jax.random.key(4))
    # The best child, the second, takes every place.
    np.testing.assert_array_equal(better.parents, jnp.broadcast_to(population[1], (SIZE, 2)))
    np.testing.assert_array_equal(better.fitness, np.full(SIZE, -99.0))
    np.testing.assert_array_equal(better.strengths, np.full(SIZE, state.child_strengths[1]))
    np.testing.assert_array_equal(better.ages, np.zeros(SIZE))
    assert better.best == -99.0


def test_children_are_drawn_and_mutated_with_their_probabilities_and_strengths():
    theta = random_theta()
    strategy, state = evaluated(theta, jnp.zeros(1))
    # Parents so far apart that a child tells whose it is.
    state = state._replace(parents=100 * jnp.arange(6.0)[:, None], strengths=jnp.full(SIZE, 0.5))

    def one(key):
        children, new = strategy.ask(state, key)
        parent = jnp.round(children / 100)
        noise = (children - 100 * parent)[:, 0] / new.child_strengths
        drawn = jnp.mean(jax.nn.one_hot(parent[:, 0].astype(int), SIZE), axis=0)
        return drawn, jnp.mean(noise), jnp.mean(noise**2)

    drawn, mean, square = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 2000))
    expected = jax.nn.softmax(sampling_logits(theta["sampling"], state))
    assert standard_errors(drawn, expected) < 4.5
    assert standard_errors(drawn, jnp.full(SIZE, 1 / SIZE)) > 4.5
    assert standard_errors(mean, 0) < 4.5
    assert standard_errors(square, 1) < 4.5
    assert standard_errors(square, 1.1) > 4.5


def test_equal_fitness_is_finite_and_trees_keep_their_dtypes():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(())}
    strategy, state = evaluated(random_theta(), params, fitness=jnp.full(SIZE, 4.0))
    children, state = strategy.ask(state, jax.random.key(3))
    new = strategy.tell(state, children, jnp.full(SIZE, 4.0), jax.random.key(4))
    assert np.isfinite(ravel(new)).all()
    for tree in (children, new.parents):
        assert (tree["w"].dtype, tree["b"].dtype) == (jnp.bfloat16, jnp.float32)
        assert tree["w"].shape == (SIZE, 2, 3)


@pytest.mark.compiles
def test_the_update_ignores_scale_and_offset_of_fitness(x64):
    strategy, state = evaluated(random_theta(), jnp.zeros(2), fitness=FITNESS.astype(float))
    population, state = strategy.ask(state, jax.random.key(3))
    children = FITNESS.astype(float)[::-1] + 0.3
    plain = strategy.tell(state, population, children, jax.random.key(4))
    scaled = state._replace(fitness=1e5 * state.fitness + 7, best=1e5 * state.best + 7)
    moved = strategy.tell(scaled, population, 1e5 * children + 7, jax.random.key(4))
    np.testing.assert_array_equal(moved.parents, plain.parents)
    np.testing.assert_array_equal(moved.ages, plain.ages)
    assert 0 < plain.ages.sum() < SIZE


def test_has_1906_weights_and_refuses_a_population_of_one():
    theta = lga(population_size=SIZE).init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == 1906
    with pytest.raises(ValueError, match="lga: population_size=1 is below 2"):
        lga(population_size=1)
