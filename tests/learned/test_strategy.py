import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metaopt.learned import isotropic_es, random_search
from metaopt.learned._fitness import (
    centred_ranks,
    finite_fitness,
    fitness_features,
    lowest,
    to_unit_range,
    z_score,
)
from tests.helpers import standard_errors


@pytest.mark.parametrize("values", [[3.0, -1.0, 2.0, 7.0], [1.0, 5.0, 1.0, 1.0], [2.0, 2.0]])
def test_ranks_are_those_of_scipy_with_shared_ranks_for_ties(values):
    expected = (scipy.stats.rankdata(values) - 1) / (len(values) - 1) - 0.5
    np.testing.assert_allclose(centred_ranks(jnp.array(values)), expected, atol=1e-7)


def test_z_scores_and_ranges_are_those_of_numpy_at_every_scale():
    values = np.array([0.3, -2.0, 1.1, 0.7, 5.0])
    expected = (values - values.mean()) / values.std()
    in_range = 2 * (values - values.min()) / np.ptp(values) - 1
    for scale in (1e-20, 1.0, 1e20):
        scaled = jnp.asarray(scale * values, jnp.float32)
        np.testing.assert_allclose(z_score(scaled), expected, rtol=1e-5)
        np.testing.assert_allclose(to_unit_range(scaled), in_range, rtol=1e-5, atol=1e-6)


@pytest.mark.compiles
def test_features_of_equal_candidates_are_zero_with_finite_derivatives():
    equal = jnp.full(4, 2.0)
    features = fitness_features(equal, jnp.array(3.0))
    np.testing.assert_array_equal(features, np.array([[1.0, 0.0, 0.0]] * 4))
    for function in (z_score, to_unit_range):
        np.testing.assert_array_equal(function(equal), np.zeros(4))
        assert np.isfinite(jax.jacobian(function)(equal)).all()


def test_fitness_that_is_not_finite_counts_as_the_worst():
    fitness = jnp.array([1.0, jnp.nan, 3.0, jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(finite_fitness(fitness), [1.0, 3.0, 3.0, 3.0, 3.0])
    np.testing.assert_array_equal(finite_fitness(jnp.full(2, jnp.nan)), [0.0, 0.0])
    assert lowest(jnp.array(2.0), fitness) == 1.0
    assert lowest(jnp.array(2.0), jnp.full(2, jnp.nan)) == 2.0


def test_a_generation_of_the_isotropic_strategy_repeats_its_formula(x64):
    strategy = isotropic_es(population_size=5, sigma=0.7, learning_rate=0.8, decay=0.9)
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    state = strategy.init(params, jax.random.key(0))
    population, state = strategy.ask(state, jax.random.key(1))
    fitness = np.array([3.0, 1.0, 2.0, 9.0, 5.0])
    state = strategy.tell(state, population, jnp.asarray(fitness), jax.random.key(2))
    weights = np.maximum(0, np.log(3) - np.log(scipy.stats.rankdata(fitness)))
    weights /= weights.sum()
    for name, start in params.items():
        centre = np.tensordot(weights, np.asarray(population[name]), 1)
        expected = np.asarray(start) + 0.8 * (centre - np.asarray(start))
        np.testing.assert_allclose(state.mean[name], expected, rtol=1e-12)
    np.testing.assert_allclose(state.sigma, 0.63, rtol=1e-12)


def test_the_isotropic_strategy_weighs_equal_candidates_equally():
    strategy = isotropic_es(population_size=4)
    state = strategy.init(jnp.zeros(3), jax.random.key(0))
    population, state = strategy.ask(state, jax.random.key(1))
    state = strategy.tell(state, population, jnp.ones(4), jax.random.key(2))
    np.testing.assert_allclose(state.mean, jnp.mean(population, axis=0), rtol=1e-5)


def test_candidates_of_the_isotropic_strategy_are_normal_around_the_mean():
    strategy = isotropic_es(population_size=2000, sigma=0.5)
    state = strategy.init(jnp.array([1.0, -1.0]), jax.random.key(0))
    population, _ = jax.jit(strategy.ask)(state, jax.random.key(1))
    assert standard_errors(population, [1.0, -1.0]) < 4.5
    assert standard_errors(population, [1.1, -1.0]) > 4.5
    squares = np.square(np.asarray(population) - [1.0, -1.0])
    assert standard_errors(squares, [0.25, 0.25]) < 4.5
    assert standard_errors(squares, [0.3, 0.25]) > 4.5


def test_random_search_is_uniform_in_its_box():
    strategy = random_search(population_size=2000, low=-1.0, high=3.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros((), jnp.bfloat16)}
    state = strategy.init(params, jax.random.key(0))
    population, same = jax.jit(strategy.ask)(state, jax.random.key(1))
    assert population["a"].shape == (2000, 2)
    assert population["b"].dtype == jnp.bfloat16
    assert standard_errors(population["a"], [1.0, 1.0]) < 4.5
    assert standard_errors(population["a"], [1.2, 1.0]) > 4.5
    assert standard_errors(np.square(population["a"] - 1), [4 / 3, 4 / 3]) < 4.5
    assert np.abs(population["a"] - 1).max() <= 2
    told = strategy.tell(same, population, jnp.zeros(2000), jax.random.key(2))
    assert jax.tree.structure(told) == jax.tree.structure(state)


@pytest.mark.parametrize("make", [isotropic_es, random_search])
def test_a_population_of_one_is_refused(make):
    with pytest.raises(ValueError, match=f"{make.__name__}: population_size=1 is below 2"):
        make(population_size=1)
