import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import combined, es
from metaopt.estimators._shared import perturbation
from tests.estimators import toys
from tests.helpers import standard_errors

THETA = jnp.array([0.3, -0.2])


def noisy_quadratic(theta, data, key):
    """Its gradient is 2θ plus noise; so is that of its smoothed version."""
    return jnp.sum(theta**2) + 3.0 * jax.random.normal(key, theta.shape) @ theta


def sample_grads(estimator, theta, *, num_samples):
    def grad(key):
        return estimator.estimate(theta, (), (), key)[0].grad

    return jax.jit(jax.vmap(grad))(jax.random.split(jax.random.key(0), num_samples))


def test_weights_of_other_halves_leave_it_unbiased():
    estimator = combined(noisy_quadratic, sigma=0.3, num_tasks=4, weights="halves")
    grads = sample_grads(estimator, THETA, num_samples=40_000)
    assert standard_errors(grads, 2 * THETA) < 4.5
    assert standard_errors(grads, 1.1 * 2 * THETA) > 4.5


def test_is_exact_on_a_linear_system_whose_derivatives_do_not_vary():
    estimator = combined(toys.linear(), sigma=0.1, horizon=6, num_tasks=4)
    estimate, _ = jax.jit(estimator.estimate)(THETA, (), (), jax.random.key(1))
    np.testing.assert_allclose(estimate.grad, toys.linear_gradient(6), rtol=1e-5)
    np.testing.assert_allclose(estimate.info.aux.backprop_weight, 1, rtol=1e-5)


@pytest.mark.parametrize("weights", ["pooled", "halves"])
def test_repeats_its_formula(weights):
    sigma, num_tasks = 0.3, 6
    estimator = combined(noisy_quadratic, sigma=sigma, num_tasks=num_tasks, weights=weights)
    actual = estimator.estimate(THETA, (), (), jax.random.key(2))[0].grad

    _, key_tasks = jax.random.split(jax.random.key(2))
    slopes, values = [], []
    for key_task in jax.random.split(key_tasks, num_tasks):
        key_eps, key_loss = jax.random.split(key_task)
        eps = np.asarray(perturbation(THETA, sigma, key_eps), np.float64)
        tilt = 3.0 * np.asarray(jax.random.normal(key_loss, (2,)), np.float64)
        theta = np.asarray(THETA, np.float64)
        slopes.append(2 * theta + tilt)
        high, low = ((theta + s * eps) @ (theta + s * eps + tilt) for s in (1, -1))
        values.append((high - low) * eps / (2 * sigma**2))
    slopes, values = np.array(slopes), np.array(values)

    def weight(rows):
        of_slopes, of_values = (x[rows].var(axis=0, ddof=1) for x in (slopes, values))
        return of_values / (of_slopes + of_values)

    first, second = slice(0, 3), slice(3, 6)
    if weights == "pooled":
        w = weight(slice(0, 6))[None]
    else:
        w = np.repeat([weight(second), weight(first)], 3, axis=0)
    expected = np.mean(w * slopes + (1 - w) * values, axis=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.compiles
def test_follows_backprop_where_it_is_smooth_and_es_where_it_is_chaotic():
    def weight(system, theta):
        estimator = combined(system, sigma=0.02, horizon=60, num_tasks=16)
        estimate, _ = jax.jit(estimator.estimate)(theta, (), (), jax.random.key(3))
        return estimate

    assert weight(toys.nonlinear(), THETA).info.aux.backprop_weight > 0.9
    chaotic = weight(toys.logistic_map(), jnp.array(3.9))
    assert chaotic.info.aux.backprop_weight < 1e-6
    same = es(toys.logistic_map(), sigma=0.02, horizon=60, num_tasks=16)
    expected, _ = jax.jit(same.estimate)(jnp.array(3.9), (), (), jax.random.key(3))
    np.testing.assert_allclose(chaotic.grad, expected.grad, rtol=1e-4)


@pytest.mark.compiles
def test_derivatives_that_are_not_finite_count_nothing():
    def loss(theta, data, key):
        # Where the draw is False the derivative is 0 times infinity, the value fine.
        is_on = jax.random.bernoulli(key).astype(theta.dtype)
        return jnp.sqrt(is_on * jnp.sum(theta**2))

    settings = {"sigma": 0.01, "num_tasks": 16}
    actual, _ = combined(loss, **settings).estimate(THETA, (), (), jax.random.key(4))
    expected, _ = es(loss, **settings).estimate(THETA, (), (), jax.random.key(4))
    assert actual.info.aux.backprop_weight == 0
    np.testing.assert_allclose(actual.grad, expected.grad, rtol=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_tasks=3 must be even and at least 4.* num_tasks=4"):
        combined(noisy_quadratic, num_tasks=3)
    with pytest.raises(ValueError, match="combined: weights='best' is unknown"):
        combined(noisy_quadratic, weights="best")
    with pytest.raises(ValueError, match="combined: sigma must be positive"):
        combined(noisy_quadratic, sigma=0.0)
