import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core
from metaopt.estimators import backprop, truncated_backprop
from tests.estimators import toys
from tests.helpers import central_differences, relative_error

THETA = jnp.array([0.3, -0.2])


def windows(estimator, theta, num_windows):
    state = estimator.init(theta, (), jax.random.key(0))
    estimates = []
    for key in jax.random.split(jax.random.key(1), num_windows):
        estimate, state = jax.jit(estimator.estimate)(theta, state, (), key)
        estimates.append(estimate)
    return estimates, state


def test_one_window_per_trajectory_is_backprop():
    truncated = truncated_backprop(toys.nonlinear(), truncation=6, horizon=6, num_tasks=2)
    expected, _ = backprop(toys.nonlinear(), horizon=6).estimate(THETA, (), (), jax.random.key(2))
    for estimate in windows(truncated, THETA, 2)[0]:
        np.testing.assert_allclose(estimate.grad, expected.grad, rtol=1e-5)
        np.testing.assert_allclose(estimate.loss, expected.loss, rtol=1e-6)


def test_second_window_differentiates_from_a_constant_state(x64):
    theta = jnp.asarray(THETA, jnp.float64)
    system = toys.nonlinear()
    estimator = truncated_backprop(system, truncation=3, horizon=6, num_tasks=1, stagger=False)
    estimates, _ = windows(estimator, theta, 2)

    def run(theta, start, steps):
        state, losses = start, []
        for _ in range(steps):
            state, info = system.step(theta, state, (), jax.random.key(0))
            losses.append(info.loss)
        return state, jnp.stack(losses).mean()

    start, _ = run(theta, system.init(theta, (), jax.random.key(0)), 3)
    expected = central_differences(lambda th: run(th, start, 3)[1], theta)
    assert relative_error(estimates[1].grad, expected) < 1e-6


def test_does_not_see_effects_beyond_the_window():
    estimator = truncated_backprop(
        toys.linear(), truncation=3, horizon=12, num_tasks=1, stagger=False
    )
    total = sum(e.grad for e in windows(estimator, THETA, 4)[0])
    np.testing.assert_allclose(total, 4 * toys.linear_gradient(3), rtol=1e-5)
    assert relative_error(total, 4 * toys.linear_gradient(12)) > 0.5


def test_staggered_tasks_start_at_different_phases_and_reset_on_time():
    estimator = truncated_backprop(toys.counter(), truncation=2, horizon=8, num_tasks=64)
    _, state = windows(estimator, jnp.array(1.0), 1)
    clocks = np.asarray(state.episode.clock)
    assert set(clocks) == {2, 4, 6, 8}
    # Only the counter is shifted: every task has taken its first two steps.
    np.testing.assert_array_equal(state.episode.state.inner.time, 2)
    _, state = windows(estimator, jnp.array(1.0), 2)
    np.testing.assert_array_equal(state.episode.state.inner.time, np.where(clocks == 8, 2, 4))


def test_a_first_order_window_refuses_what_it_cannot_reach():
    problem = core.BilevelProblem(
        init=lambda key: jnp.zeros(2),
        inner_loss=lambda params, theta, data, key: jnp.sum((params - theta) ** 2),
        outer_loss=lambda params, theta, data, key: jnp.sum(params**2),
    )
    system = core.bilevel_training(problem, optax.sgd(0.1))
    settings = {"truncation": 2, "horizon": 4, "num_tasks": 1, "stagger": False}
    mixed = truncated_backprop(system, gradient="mixed", **settings)
    # p ← 0.8 p + 0.2 θ twice from 0; the loss of both steps, (0.2² + 0.36²) θ² / 2, by θ.
    estimates, _ = windows(mixed, THETA, 1)
    np.testing.assert_allclose(estimates[0].grad, (0.2**2 + 0.36**2) * THETA, rtol=1e-5)
    first_order = truncated_backprop(system, gradient="first_order", **settings)
    with pytest.raises(ValueError, match="truncated_backprop: gradient='first_order' leaves theta"):
        windows(first_order, THETA, 1)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="truncated_backprop: horizon=7 is not a multiple"):
        truncated_backprop(toys.linear(), truncation=3, horizon=7)
    with pytest.raises(ValueError, match="truncated_backprop: num_tasks must be an integer"):
        truncated_backprop(toys.linear(), truncation=3, horizon=6, num_tasks=-1)
