import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metaopt.estimators import es, nres, pes, truncated_es
from metaopt.estimators._shared import perturbation
from metaopt.estimators._transforms import centred_ranks
from tests.estimators import toys

THETA = jnp.array([0.3, -0.2])
WINDOWS = {"sigma": 0.1, "truncation": 2, "horizon": 4, "num_tasks": 3, "stagger": False}


def scaled(system, factor):
    def step(theta, state, data, key):
        state, info = system.step(theta, state, data, key)
        return state, info._replace(loss=factor * info.loss)

    return system._replace(step=step)


@pytest.mark.parametrize("losses", [[3.0, -1.0, 2.0, 7.0], [1.0, 5.0, 1.0, 1.0], [2.0, 2.0]])
def test_ranks_are_those_of_scipy_with_shared_ranks_for_ties(losses):
    expected = (scipy.stats.rankdata(losses) - 1) / (len(losses) - 1) - 0.5
    np.testing.assert_allclose(centred_ranks(jnp.array(losses)), expected, atol=1e-7)


def test_es_with_ranks_repeats_its_formula():
    slope = jnp.array([1.0, -2.0, 0.5])

    def loss(theta, data, key):
        return jnp.exp(slope @ theta + jax.random.normal(key))

    sigma, theta, key = 0.1, jnp.zeros(3), jax.random.key(0)
    actual = es(loss, sigma=sigma, num_tasks=4, ranks=2.0).estimate(theta, (), (), key)[0].grad

    _, key_tasks = jax.random.split(jax.random.key(0))
    eps, losses = [], []
    for key_task in jax.random.split(key_tasks, 4):
        key_eps, key_loss = jax.random.split(key_task)
        eps.append(perturbation(theta, sigma, key_eps))
        noise = float(jax.random.normal(key_loss))
        losses.append([np.exp(float(s * slope @ eps[-1]) + noise) for s in (1, -1)])
    ranked = scipy.stats.rankdata(np.array(losses)).reshape(4, 2)
    weights = 2.0 * (ranked[:, 0] - ranked[:, 1]) / 7
    expected = np.mean([w * e / (2 * sigma**2) for w, e in zip(weights, eps, strict=True)], axis=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("make", [pes, nres, truncated_es])
@pytest.mark.parametrize("transform", ["sign", "ranks"])
def test_windows_ignore_the_scale_of_the_loss(make, transform):
    @jax.jit
    def grad(factor, key):
        estimator = make(scaled(toys.nonlinear(), factor), **{transform: 1.0}, **WINDOWS)
        key_init, key_first, key_second = jax.random.split(key, 3)
        state = estimator.init(THETA, (), key_init)
        _, state = estimator.estimate(THETA, state, (), key_first)
        return estimator.estimate(THETA, state, (), key_second)[0].grad

    plain, large = (grad(factor, jax.random.key(1)) for factor in (1.0, 1e3))
    assert np.all(np.abs(plain) > 0)
    np.testing.assert_allclose(large, plain, rtol=1e-6)


@pytest.mark.parametrize("make", [pes, nres, truncated_es])
def test_ranks_of_one_task_are_its_sign(make):
    settings = {**WINDOWS, "num_tasks": 1}
    grads = []
    for transform in ({"sign": 0.5}, {"ranks": 0.5}):
        estimator = make(toys.nonlinear(), **transform, **settings)
        state = estimator.init(THETA, (), jax.random.key(2))
        grads.append(jax.jit(estimator.estimate)(THETA, state, (), jax.random.key(3))[0].grad)
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-6)


def test_a_task_that_is_not_finite_contributes_zero_and_leaves_the_others_finite():
    def sometimes_nan(theta, data, key):
        return jnp.where(jax.random.bernoulli(key), jnp.nan, jnp.sum(theta))

    estimator = es(sometimes_nan, num_tasks=16, ranks=1.0)
    estimate, _ = estimator.estimate(THETA, (), (), jax.random.key(4))
    assert 0 < estimate.info.nonfinite < 1
    assert np.all(np.isfinite(estimate.grad))
    assert np.all(np.abs(estimate.grad) > 0)


@pytest.mark.parametrize("make", [es, pes, nres, truncated_es])
def test_bad_settings_are_refused(make):
    settings = {"horizon": 4} if make is es else {"horizon": 4, "truncation": 2}
    name = make.__name__
    with pytest.raises(ValueError, match=f"{name}: ranks must be positive"):
        make(toys.linear(), ranks=-1.0, **settings)
    with pytest.raises(ValueError, match=f"{name}: sign must be positive"):
        make(toys.linear(), sign=0.0, **settings)
    with pytest.raises(ValueError, match=f"{name}: sign=1.0 and ranks=1.0 exclude each other"):
        make(toys.linear(), sign=1.0, ranks=1.0, **settings)
