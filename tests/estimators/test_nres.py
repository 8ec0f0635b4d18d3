import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import unroll
from metaopt.estimators import nres, pes
from tests.estimators import toys
from tests.helpers import standard_errors

THETA = jnp.array([0.3, -0.2])


@pytest.mark.compiles
def test_windows_of_a_trajectory_sum_to_full_es_with_the_same_noise(x64):
    theta, key = jnp.asarray(THETA, jnp.float64), jax.random.key(1)
    settings = {"sigma": 0.1, "horizon": 12, "num_tasks": 1, "stagger": False}
    estimator = nres(toys.nonlinear(), truncation=3, **settings)
    state = estimator.init(theta, (), jax.random.key(0))
    eps, total = state.eps[0], 0.0
    for window in range(4):
        estimate, state = estimator.estimate(theta, state, (), jax.random.fold_in(key, window))
        total = total + 3 * estimate.grad
        np.testing.assert_array_equal(state.eps[0], eps)

    loss = unroll.meta_loss(toys.nonlinear(), horizon=12)
    high, low = (loss(theta + sign * eps, (), jax.random.key(2)) for sign in (1, -1))
    np.testing.assert_allclose(total, 12 * (high - low) * eps / (2 * 0.1**2), rtol=1e-10)

    # The next trajectory has noise of its own.
    _, state = estimator.estimate(theta, state, (), jax.random.fold_in(key, 4))
    assert np.all(np.asarray(state.eps[0]) != np.asarray(eps))


def test_sees_effects_beyond_the_window():
    estimator = nres(
        toys.linear(0.1), sigma=0.5, truncation=3, horizon=12, num_tasks=1, stagger=False
    )
    grads = toys.summed_windows(
        estimator, THETA, jax.random.key(3), num_windows=4, num_samples=20_000
    )
    expected = 4 * toys.linear_gradient(12)
    assert standard_errors(grads, expected) < 4.5
    assert standard_errors(grads, 1.1 * expected) > 4.5


@pytest.mark.compiles
def test_windows_that_cancel_add_no_variance():
    # The loss is θ in one window and −θ in the next, so that the gradient of the sum is zero.
    def step(theta, state, data, key):
        state, info = toys.counter().step(theta, state, data, key)
        sign = jnp.where((state.time - 1) // 4 % 2 == 0, 1.0, -1.0)
        return state, info._replace(loss=sign * theta)

    def spread(make, num_windows):
        settings = {"truncation": 4, "horizon": 4 * num_windows, "num_tasks": 1, "stagger": False}
        estimator = make(toys.counter()._replace(step=step), sigma=1.0, **settings)
        return np.std(
            toys.summed_windows(
                estimator,
                jnp.zeros(()),
                jax.random.key(4),
                num_windows=num_windows,
                num_samples=5_000,
            )
        )

    assert spread(nres, 8) < 1e-5
    # In PES the noise of earlier windows meets the losses of later ones.
    assert spread(pes, 8) > 2 * spread(pes, 2) > 1


@pytest.mark.compiles
def test_one_window_per_trajectory_is_pes():
    settings = {"sigma": 0.1, "truncation": 6, "horizon": 6, "num_tasks": 3}
    results = []
    for make in (nres, pes):
        estimator = make(toys.nonlinear(), **settings)
        state = estimator.init(THETA, (), jax.random.key(5))
        # In the first window NRES uses the noise of its start, from the second on that of the key.
        for key in jax.random.split(jax.random.key(6), 2):
            estimate, state = jax.jit(estimator.estimate)(THETA, state, (), key)
        results.append(estimate.grad)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="nres: horizon=7 is not a multiple"):
        nres(toys.linear(), truncation=3, horizon=7)
    with pytest.raises(TypeError, match="nres: horizon must be an integer or a Horizon, got None"):
        nres(toys.linear(), truncation=3, horizon=None)
    with pytest.raises(ValueError, match="nres: sigma must be positive"):
        nres(toys.linear(), truncation=3, horizon=6, sigma=-1.0)
