import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import pes, truncated_es
from tests.estimators import toys
from tests.helpers import standard_errors

THETA = jnp.array([0.3, -0.2])


def test_is_unbiased_where_one_window_is_the_trajectory():
    estimator = truncated_es(toys.linear(0.1), sigma=0.1, truncation=4, horizon=4, num_tasks=1)
    grads = toys.summed_windows(
        estimator, THETA, jax.random.key(0), num_windows=1, num_samples=10_000
    )
    expected = toys.linear_gradient(4)
    assert standard_errors(grads, expected) < 4.5
    assert standard_errors(grads, 1.1 * expected) > 4.5


def test_does_not_see_effects_beyond_the_window():
    estimator = truncated_es(
        toys.linear(), sigma=0.1, truncation=3, horizon=12, num_tasks=1, stagger=False
    )
    grads = toys.summed_windows(
        estimator, THETA, jax.random.key(1), num_windows=4, num_samples=10_000
    )
    assert standard_errors(grads, 4 * toys.linear_gradient(12)) > 20
    # What it sees is four times the effect of one window on itself.
    assert standard_errors(grads, 4 * toys.linear_gradient(3)) < 4.5


@pytest.mark.compiles
def test_first_window_agrees_with_pes():
    settings = {"sigma": 0.1, "truncation": 3, "horizon": 12, "num_tasks": 2, "stagger": False}
    grads = []
    for make in (truncated_es, pes):
        estimator = make(toys.nonlinear(), **settings)
        state = estimator.init(THETA, (), jax.random.key(2))
        grads.append(estimator.estimate(THETA, state, (), jax.random.key(3))[0].grad)
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-4)


def test_carries_on_the_state_of_the_upper_arm():
    estimator = truncated_es(
        toys.counter(), sigma=0.5, truncation=3, horizon=6, num_tasks=1, stagger=False
    )
    state = estimator.init(jnp.array(1.0), (), jax.random.key(4))
    estimate, state = estimator.estimate(jnp.array(1.0), state, (), jax.random.key(5))
    # Losses are the sums θ, 2θ, 3θ: their means at θ ± e differ by 4e, so g = 4e² / (2σ²).
    magnitude = jnp.sqrt(estimate.grad * 2 * 0.5**2 / 4)
    np.testing.assert_allclose(
        jnp.abs(state.episode.state.inner.total[0] - 3) / 3, magnitude, rtol=1e-5
    )


@pytest.mark.compiles
def test_sign_ignores_the_scale_of_the_loss():
    system = toys.linear()

    def scaled_step(theta, state, data, key):
        state, info = system.step(theta, state, data, key)
        return state, info._replace(loss=1e3 * info.loss)

    def grad(system, sign):
        estimator = truncated_es(system, sigma=0.1, truncation=2, horizon=4, sign=sign)
        state = estimator.init(THETA, (), jax.random.key(6))
        return np.asarray(estimator.estimate(THETA, state, (), jax.random.key(7))[0].grad)

    scaled = system._replace(step=scaled_step)
    np.testing.assert_array_equal(grad(scaled, 1.0), grad(system, 1.0))
    np.testing.assert_allclose(grad(scaled, None), 1e3 * grad(system, None), rtol=1e-4)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="truncated_es: horizon=7 is not a multiple"):
        truncated_es(toys.linear(), truncation=3, horizon=7)
    with pytest.raises(ValueError, match="truncated_es: sign must be positive"):
        truncated_es(toys.linear(), truncation=3, horizon=6, sign=0.0)
