from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.core import StepInfo, System
from metaopt.estimators import bootstrapped
from tests.estimators import toys
from tests.helpers import central_differences, relative_error

CURVATURE = jnp.array([1.0, 0.3])
START = jnp.array([1.0, -2.0])
SETTINGS = {"num_tasks": 2, "stagger": False}


class State(NamedTuple):
    params: jax.Array


def descent() -> System:
    """Gradient descent on ½ Σ a x² with the step sizes θ, one per coordinate."""

    def init(theta, data, key, *, num_steps=None):
        return State(START.astype(theta.dtype))

    def step(theta, state, data, key):
        loss = 0.5 * jnp.sum(CURVATURE * state.params**2)
        params = state.params - theta * CURVATURE * state.params
        return State(params), StepInfo(loss, jnp.array(False))

    return System(init, step)


def plain_step(rate):
    """A gradient step of fixed size."""

    def step(theta, state, data, key):
        params = state.params - rate * (CURVATURE * state.params)
        return State(params), StepInfo(jnp.zeros(()), jnp.array(False))

    return step


def first_gradient(theta, **settings):
    estimator = bootstrapped(descent(), **{**SETTINGS, **settings})
    state = estimator.init(theta, (), jax.random.key(0))
    return jax.jit(estimator.estimate)(theta, state, (), jax.random.key(1))


@pytest.mark.parametrize(("truncation", "bootstrap"), [(1, 1), (3, 1), (2, 5)])
def test_agrees_with_the_closed_form_on_a_quadratic(x64, truncation, bootstrap):
    theta = jnp.array([0.2, 0.5])
    estimate, _ = first_gradient(theta, truncation=truncation, bootstrap=bootstrap, horizon=6)
    a, x, th = (np.asarray(v, np.float64) for v in (CURVATURE, START, theta))
    shrink = 1 - th * a
    here, there = shrink**truncation * x, shrink ** (truncation + bootstrap) * x
    slope = -truncation * a * shrink ** (truncation - 1) * x
    np.testing.assert_allclose(estimate.grad, (here - there) * slope, rtol=1e-10)
    np.testing.assert_allclose(estimate.info.aux.matching, 0.5 * np.sum((here - there) ** 2))
    assert estimate.info.inner_steps == 2 * (truncation + bootstrap)


def test_one_plain_gradient_step_gives_the_meta_gradient_times_its_size(x64):
    theta, rate = jnp.array([0.2, 0.5]), 0.1
    estimate, _ = first_gradient(
        theta, truncation=3, bootstrap=1, horizon=6, last_step=plain_step(rate)
    )

    def loss_after(theta):
        params = START * (1 - theta * CURVATURE) ** 3
        return 0.5 * jnp.sum(CURVATURE * params**2)

    expected = rate * central_differences(loss_after, theta)
    assert relative_error(estimate.grad, expected) < 1e-6


def test_own_steps_come_before_the_last_one(x64):
    theta, rate = jnp.array([0.2, 0.5]), 0.1
    estimate, _ = first_gradient(
        theta, truncation=1, bootstrap=3, horizon=6, last_step=plain_step(rate)
    )
    a, x, th = (np.asarray(v, np.float64) for v in (CURVATURE, START, theta))
    here = (1 - th * a) * x
    there = (1 - rate * a) * (1 - th * a) ** 2 * here
    np.testing.assert_allclose(estimate.grad, (here - there) * (-a * x), rtol=1e-10)


def test_training_goes_on_from_the_end_of_the_window_and_starts_anew():
    theta = jnp.array([0.2, 0.5])
    estimator = bootstrapped(descent(), truncation=2, bootstrap=3, horizon=4, **SETTINGS)
    state = estimator.init(theta, (), jax.random.key(2))
    step = jax.jit(estimator.estimate)
    for steps in (2, 4, 2):
        _, state = step(theta, state, (), jax.random.fold_in(jax.random.key(3), steps))
        expected = START * (1 - theta * CURVATURE) ** steps
        np.testing.assert_allclose(state.episode.state.inner.params[0], expected, rtol=1e-5)


def test_a_matching_function_of_ones_own_sees_the_states(x64):
    theta = jnp.array([0.2, 0.5])
    weights = jnp.array([2.0, 0.0])
    estimate, _ = first_gradient(
        theta,
        truncation=1,
        bootstrap=1,
        horizon=2,
        matching=lambda state, target: weights @ (state.params - target.params),
    )
    np.testing.assert_allclose(estimate.grad, weights * -CURVATURE * START, rtol=1e-10)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps_to_the_target():
    """Nothing is differentiated there, so nothing is kept."""

    def step(theta, state, data, key):
        params = state.params - theta * jnp.sin(state.params)
        return State(params), StepInfo(jnp.sum(params**2), jnp.array(False))

    def begin(theta, data, key, *, num_steps=None):
        return State(jnp.ones(10_000))

    def temporary_bytes(bootstrap):
        estimator = bootstrapped(
            System(begin, step), truncation=3, bootstrap=bootstrap, horizon=6, num_tasks=2
        )
        theta = jnp.array(0.1)
        state = estimator.init(theta, (), jax.random.key(0))
        lowered = jax.jit(estimator.estimate).lower(theta, state, (), jax.random.key(1))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(20) < 1.05 * temporary_bytes(1)


@pytest.mark.compiles
def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="bootstrapped: bootstrap must be an integer"):
        bootstrapped(descent(), truncation=2, bootstrap=0, horizon=4)
    with pytest.raises(ValueError, match="bootstrapped: horizon=5 is not a multiple"):
        bootstrapped(descent(), truncation=2, bootstrap=1, horizon=5)
    estimator = bootstrapped(toys.linear(), truncation=2, bootstrap=1, horizon=4)
    state = estimator.init(jnp.ones(2), (), jax.random.key(4))
    with pytest.raises(TypeError, match="squared_distance: .* has no `params`; pass your own"):
        estimator.estimate(jnp.ones(2), state, (), jax.random.key(5))
