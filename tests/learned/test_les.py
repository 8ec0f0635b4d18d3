import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from metaopt.learned import les
from metaopt.learned._fitness import fitness_features
from metaopt.learned._les import recombination_weights
from tests.helpers import central_differences, ravel, relative_error

SIZE = 6
FITNESS = jnp.array([3.0, 1.0, 2.5, 9.0, 5.0, 2.0])


def random_theta(seed=0, scale=1.0):
    """Weights and biases that are far from zero."""
    theta = les(population_size=SIZE).init(jax.random.key(seed))
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return treedef.unflatten(
        [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def generation(theta, params, fitness, *, best=None, order=None):
    """One generation from a fresh start, or with an earlier best; candidates may be permuted."""
    strategy = les(population_size=SIZE, sigma=0.7).strategy(theta)
    state = strategy.init(params, jax.random.key(0))
    if best is not None:
        state = state._replace(best=jnp.asarray(best, state.best.dtype))
    population, state = strategy.ask(state, jax.random.key(1))
    if order is not None:
        population, fitness = jax.tree.map(lambda x: x[order], (population, fitness))
    return strategy.tell(state, population, fitness, jax.random.key(2))


def numpy_weights(theta, fitness, best):
    ranks = (scipy.stats.rankdata(fitness) - 1) / (len(fitness) - 1) - 0.5
    z = (fitness - fitness.mean()) / fitness.std()
    features = np.stack([fitness < best, ranks, z], axis=1)
    key, query, value = (
        features @ theta[k]["w"] + theta[k]["b"] for k in ("key", "query", "value")
    )
    attention = scipy.special.softmax(query @ key.T / np.sqrt(len(fitness)), axis=1)
    return scipy.special.softmax((attention @ value)[:, 0])


def numpy_generation(theta, carry, x, fitness, t, best):
    """One generation of a vector, coordinate by coordinate, from the paper's formulas."""
    mean, std, paths, scaled = carry
    w = numpy_weights(theta, fitness, best)
    d = w @ (x - mean)
    rates = np.array([0.1, 0.5, 0.9])
    paths = [(1 - c) * p + c * d for c, p in zip(rates, paths, strict=True)]
    scaled = [(1 - c) * p + c * d / std for c, p in zip(rates, scaled, strict=True)]
    scales = np.array([1, 3, 10, 30, 50, 100, 250, 500, 750, 1000, 1250, 1500, 2000])
    new_mean, new_std = mean.copy(), std.copy()
    for i in range(len(mean)):
        inputs = [p[i] for p in paths] + [q[i] for q in scaled] + list(np.tanh(t / scales - 1))
        hidden = np.maximum(np.array(inputs) @ theta["hidden"]["w"] + theta["hidden"]["b"], 0)
        a, b = (
            scipy.special.expit(hidden @ theta[k]["w"] + theta[k]["b"])[0]
            for k in ("mean_rate", "std_rate")
        )
        found = np.sqrt(w @ (x[:, i] - mean[i]) ** 2 + 1e-8)
        new_mean[i] = mean[i] + a * d[i]
        new_std[i] = std[i] + b * (found - std[i])
    return new_mean, new_std, paths, scaled


def as_vector(tree):
    return np.concatenate([np.atleast_1d(tree["a"]), np.atleast_1d(tree["b"])])


@pytest.mark.compiles
def test_three_generations_repeat_a_transcription_in_numpy(x64):
    theta = random_theta()
    strategy = les(population_size=SIZE, sigma=0.7).strategy(theta)
    params = {"a": jnp.array([1.0, -2.0, 0.3]), "b": jnp.array(0.5)}
    state = strategy.init(params, jax.random.key(0))
    reference = jax.tree.map(np.asarray, theta)
    zero, best = np.zeros(4), np.inf
    carry = (as_vector(params), np.full(4, 0.7), [zero] * 3, [zero] * 3)
    ask, tell = jax.jit(strategy.ask), jax.jit(strategy.tell)
    for t in range(3):
        population, state = ask(state, jax.random.key(10 + t))
        x = np.stack(
            [as_vector(jax.tree.map(lambda v, i=i: v[i], population)) for i in range(SIZE)]
        )
        # The second generation has better candidates than the first, the third has not.
        fitness = np.roll(np.asarray(FITNESS, np.float64), t) - (0.5, 1.7, 0.0)[t]
        state = tell(state, population, jnp.asarray(fitness), jax.random.key(20 + t))
        carry = numpy_generation(reference, carry, x, fitness, t, best)
        best = min(best, fitness.min())
        np.testing.assert_allclose(as_vector(state.mean), carry[0], rtol=1e-9)
        np.testing.assert_allclose(as_vector(state.spread.std), carry[1], rtol=1e-9)
        assert state.best == best
    np.testing.assert_allclose(state.spread.paths["b"], [p[3] for p in carry[2]], rtol=1e-9)
    np.testing.assert_allclose(state.spread.scaled_paths["a"][1], carry[3][1][:3], rtol=1e-9)


def test_follows_the_implementation_of_evosax():
    evosax = pytest.importorskip("evosax.algorithms")
    theta = random_theta()
    layer = lambda name: {"kernel": theta[name]["w"], "bias": theta[name]["b"]}  # noqa: E731
    names = {
        "recomb_weights": ("key", "query", "value"),
        "lrate_modulation": ("hidden", "mean_rate", "std_rate"),
    }
    published = {
        part: {"params": {f"Dense_{i}": layer(name) for i, name in enumerate(layers)}}
        for part, layers in names.items()
    }
    theirs = evosax.LearnedES(SIZE, jnp.zeros(3), params=published)
    settings = theirs.default_params
    their_state = theirs.init(jax.random.key(0), jnp.array([1.0, -2.0, 0.3]), settings)
    ours = les(population_size=SIZE).strategy(theta)
    state = ours.init(jnp.array([1.0, -2.0, 0.3]), jax.random.key(0))
    for t in range(4):
        population, state = ours.ask(state, jax.random.key(10 + t))
        fitness = jnp.roll(FITNESS, t) - 0.3 * t
        state = ours.tell(state, population, fitness, jax.random.key(20 + t))
        with jax.numpy_rank_promotion("allow"):
            their_state, _ = theirs.tell(
                jax.random.key(30 + t), population, fitness, their_state, settings
            )
        np.testing.assert_allclose(state.mean, their_state.mean, rtol=2e-5)
        np.testing.assert_allclose(state.spread.std, their_state.std, rtol=2e-5)
        np.testing.assert_allclose(state.spread.paths.T, their_state.p_c, rtol=1e-4, atol=1e-6)


@pytest.mark.compiles
def test_permuting_candidates_permutes_weights_and_leaves_the_update(x64):
    theta, order = random_theta(), jnp.array([3, 1, 5, 0, 2, 4])
    # Two candidates are equal: their order must not matter either.
    fitness = FITNESS.astype(float).at[5].set(2.5)
    weights = recombination_weights(theta, fitness_features(fitness, jnp.array(2.2)))
    permuted = recombination_weights(theta, fitness_features(fitness[order], jnp.array(2.2)))
    np.testing.assert_allclose(permuted, weights[order], rtol=1e-12)
    assert np.ptp(weights) > 0.01
    params = {"w": jnp.ones((2, 2))}
    plain = generation(theta, params, fitness)
    shuffled = generation(theta, params, fitness, order=order)
    np.testing.assert_allclose(ravel(shuffled), ravel(plain), rtol=1e-10)


@pytest.mark.compiles
def test_weights_are_positive_and_sum_to_one_and_initial_ones_favour_the_better_half():
    thetas = jax.vmap(lambda key: les(population_size=SIZE).init(key))(
        jax.random.split(jax.random.key(0), 20)
    )
    features = fitness_features(FITNESS, jnp.array(2.2))
    weights = jax.vmap(lambda theta: recombination_weights(theta, features))(thetas)
    np.testing.assert_allclose(jnp.sum(weights, axis=1), 1, rtol=1e-6)
    assert (weights > 0).all()
    better, worse = weights[:, jnp.array([1, 2, 5])], weights[:, jnp.array([0, 3, 4])]
    assert (better.sum(axis=1) > 2 * worse.sum(axis=1)).all()


@pytest.mark.compiles
def test_the_update_ignores_scale_and_offset_of_fitness_until_the_best_is_beaten(x64):
    theta, params = random_theta(), jnp.array([1.0, -2.0])
    fitness = FITNESS.astype(float)

    def update(fitness, best):
        state = generation(theta, params, fitness, best=best)
        return ravel((state.mean, state.spread))

    none_better = update(fitness, 0.0)
    for other in (1e-9 * fitness + 7.0, 1e6 * fitness):
        np.testing.assert_allclose(update(other, 0.0), none_better, rtol=1e-6)
    assert relative_error(update(fitness, 1.5), none_better) > 1e-3
    # The same candidates are better than the best after both are scaled.
    np.testing.assert_allclose(update(1e6 * fitness, 1.5e6), update(fitness, 1.5), rtol=1e-9)


@pytest.mark.compiles
def test_equal_fitness_recombines_with_equal_weights():
    params = jnp.array([1.0, -2.0])
    strategy = les(population_size=SIZE).strategy(random_theta())
    state = strategy.init(params, jax.random.key(0))
    population, state = strategy.ask(state, jax.random.key(1))
    state = strategy.tell(state, population, jnp.full(SIZE, 4.0), jax.random.key(2))
    centre = jnp.mean(population, axis=0) - params
    np.testing.assert_allclose(state.spread.paths[2], 0.9 * centre, rtol=1e-5)
    assert np.isfinite(ravel(state)).all()


@pytest.mark.compiles
def test_the_best_fitness_is_updated_after_the_features():
    # All candidates beat an earlier best of 10; a best that knew this generation would differ.
    theta, params = random_theta(), jnp.array([1.0, -2.0])
    plain = generation(theta, params, FITNESS, best=10.0)
    early = generation(theta, params, FITNESS, best=1.0)
    assert plain.best == early.best == 1.0
    assert relative_error(early.spread.paths, plain.spread.paths) > 1e-3
    weights = numpy_weights(jax.tree.map(np.asarray, theta), np.asarray(FITNESS), 10.0)
    strategy = les(population_size=SIZE, sigma=0.7).strategy(theta)
    population, _ = strategy.ask(strategy.init(params, jax.random.key(0)), jax.random.key(1))
    expected = 0.9 * weights @ np.asarray(population - params[None])
    np.testing.assert_allclose(plain.spread.paths[2], expected, rtol=1e-4)


def test_candidates_without_finite_fitness_count_as_the_worst():
    theta, params = random_theta(), jnp.array([1.0, -2.0])
    broken = FITNESS.at[0].set(jnp.nan).at[3].set(jnp.inf)
    mended = FITNESS.at[0].set(5.0).at[3].set(5.0)
    actual = generation(theta, params, broken, best=0.0)
    np.testing.assert_array_equal(ravel(actual), ravel(generation(theta, params, mended, best=0.0)))
    hopeless = generation(theta, params, jnp.full(SIZE, jnp.nan), best=0.0)
    assert np.isfinite(ravel(hopeless)).all()


def test_minimises_a_sphere_with_weights_of_truncation_selection():
    # Attention of ranks to ranks of their own sign: the better half shares all the weight.
    theta = jax.tree.map(jnp.zeros_like, random_theta())
    for name in ("key", "query"):
        theta[name]["w"] = theta[name]["w"].at[1].set(20.0)
    theta["value"]["w"] = theta["value"]["w"].at[1].set(-20.0)
    theta["mean_rate"]["b"] = jnp.full(1, 3.0)
    weights = recombination_weights(theta, fitness_features(FITNESS, jnp.array(0.0)))
    np.testing.assert_allclose(weights[jnp.array([1, 2, 5])], 1 / 3, rtol=1e-2)

    strategy = les(population_size=20).strategy(theta)

    @jax.jit
    def run(key):
        def step(state, index):
            key_ask, key_tell = jax.random.split(jax.random.fold_in(key, index))
            population, state = strategy.ask(state, key_ask)
            fitness = jnp.sum(population**2, axis=1)
            return strategy.tell(state, population, fitness, key_tell), None

        state = strategy.init(jnp.full(5, 3.0), key)
        return jax.lax.scan(step, state, jnp.arange(60))[0]

    assert run(jax.random.key(0)).best < 45 * 1e-4


def test_keeps_structure_and_dtypes_of_parameters():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(())}
    strategy = les(population_size=SIZE).strategy(random_theta())
    state = strategy.init(params, jax.random.key(0))
    population, state = strategy.ask(state, jax.random.key(1))
    assert population["w"].shape == (SIZE, 2, 3)
    new = strategy.tell(state, population, FITNESS, jax.random.key(2))
    for tree in (population, new.mean):
        assert (tree["w"].dtype, tree["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(new.spread)} == {jnp.dtype(jnp.float32)}
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), new)
    assert kinds == jax.tree.map(lambda x: (x.shape, x.dtype), state)


def test_derivatives_by_theta_match_central_differences(x64):
    params = jnp.array([1.0, -2.0])

    def function(theta):
        state = generation(theta, params, FITNESS.astype(float), best=2.2)
        return jnp.sum(state.mean**2) + jnp.sum(state.spread.std**2)

    theta = random_theta(scale=0.5)
    actual = ravel(jax.jit(jax.grad(function))(theta))
    assert relative_error(actual, central_differences(function, theta)) < 1e-7


def test_has_246_weights():
    theta = les(population_size=SIZE).init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == 246


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="les: population_size=1 is below 2"):
        les(population_size=1)
    with pytest.raises(ValueError, match="les: hidden_size=0 is below 1"):
        les(population_size=4, hidden_size=0)
