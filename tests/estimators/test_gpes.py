import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import gpes, nres, pes
from tests.estimators import toys
from tests.helpers import standard_errors

THETA = jnp.array([0.3, -0.2])
SETTINGS = {"sigma": 0.1, "truncation": 3, "horizon": 12, "num_tasks": 2, "stagger": False}


def run(estimator, num_windows):
    state = estimator.init(THETA, (), jax.random.key(0))
    grads, step = [], jax.jit(estimator.estimate)
    for window in range(num_windows):
        estimate, state = step(THETA, state, (), jax.random.fold_in(jax.random.key(1), window))
        grads.append(np.asarray(estimate.grad))
    return np.array(grads)


def test_noise_shared_over_a_window_is_pes():
    actual = run(gpes(toys.nonlinear(), share=3, **SETTINGS), 6)
    np.testing.assert_allclose(actual, run(pes(toys.nonlinear(), **SETTINGS), 6), rtol=1e-4)


@pytest.mark.parametrize("share", [12, 24])
def test_noise_shared_over_a_trajectory_is_nres(share):
    # NRES draws the first trajectory's noise before its first window, so the second is compared.
    actual = run(gpes(toys.nonlinear(), share=share, **SETTINGS), 8)[4:]
    np.testing.assert_allclose(actual, run(nres(toys.nonlinear(), **SETTINGS), 8)[4:], rtol=1e-4)


@pytest.mark.parametrize("share", [1, 6])
def test_is_unbiased_for_any_stretch_of_noise(share):
    estimator = gpes(
        toys.linear(0.1),
        sigma=0.5,
        truncation=3,
        horizon=12,
        share=share,
        num_tasks=1,
        stagger=False,
    )
    grads = toys.summed_windows(
        estimator, THETA, jax.random.key(2), num_windows=4, num_samples=40_000
    )
    expected = 4 * toys.linear_gradient(12)
    assert standard_errors(grads, expected) < 4.5
    assert standard_errors(grads, 1.1 * expected) > 4.5


def test_staggered_tasks_are_unbiased_on_average_over_phases():
    estimator = gpes(toys.counter(), sigma=1.0, truncation=5, horizon=20, share=10, num_tasks=4)

    def one(key):
        key_init, key_burn, key_run = jax.random.split(key, 3)
        theta = jnp.zeros(())
        state = estimator.init(theta, (), key_init)

        def burn(state, index):
            return estimator.estimate(theta, state, (), jax.random.fold_in(key_burn, index))[1], ()

        state, _ = jax.lax.scan(burn, state, jnp.arange(4))
        return estimator.estimate(theta, state, (), key_run)[0].grad

    grads = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 20_000))
    assert standard_errors(20 * grads, 210.0) < 4
    assert standard_errors(20 * grads, 195.0) > 4


@pytest.mark.compiles
def test_gradients_that_cancel_within_a_stretch_of_noise_add_no_variance():
    # The loss is θ for two steps and −θ for the next two: the gradient of the sum is zero.
    def step(theta, state, data, key):
        state, info = toys.counter().step(theta, state, data, key)
        sign = jnp.where((state.time - 1) // 2 % 2 == 0, 1.0, -1.0)
        return state, info._replace(loss=sign * theta)

    def spread(share):
        estimator = gpes(
            toys.counter()._replace(step=step),
            sigma=1.0,
            truncation=2,
            horizon=8,
            share=share,
            num_tasks=1,
            stagger=False,
        )
        grads = toys.summed_windows(
            estimator, jnp.zeros(()), jax.random.key(4), num_windows=4, num_samples=5_000
        )
        return np.std(grads)

    assert spread(8) < 1e-5
    assert spread(2) > 1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="share=4 neither divides truncation=6 nor .* share=6"):
        gpes(toys.linear(), truncation=6, horizon=12, share=4)
    with pytest.raises(ValueError, match="gpes: horizon=7 is not a multiple of truncation=6"):
        gpes(toys.linear(), truncation=6, horizon=7, share=1)
    with pytest.raises(TypeError, match="gpes: horizon must be an integer or a Horizon, got None"):
        gpes(toys.linear(), truncation=6, horizon=None)
    with pytest.raises(ValueError, match="gpes: share must be an integer of at least 1"):
        gpes(toys.linear(), truncation=6, horizon=12, share=0)
