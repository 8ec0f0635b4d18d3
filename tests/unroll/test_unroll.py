from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import unroll
from metaopt.core import StepInfo, System
from tests.estimators import toys
from tests.helpers import relative_error


class Clocked(NamedTuple):
    value: jax.Array
    time: jax.Array


def breaks_at(time, *, state_only=False) -> System:
    """Loss 10 − t, until it (or only the state) turns NaN at step `time`."""

    def init(theta, data, key, *, num_steps=None):
        return Clocked(jnp.ones(2), jnp.array(0))

    def step(theta, state, data, key):
        bad = state.time == time
        value = jnp.where(bad, jnp.nan, state.value + theta)
        loss = 10.0 - state.time + 0 * theta
        return Clocked(value, state.time + 1), StepInfo(
            loss if state_only else jnp.where(bad, jnp.nan, loss), jnp.array(False)
        )

    return System(init, step)


@pytest.mark.parametrize("state_only", [False, True])
def test_a_diverging_trajectory_is_frozen_at_its_worst_loss(state_only):
    system = unroll.freeze_diverged(breaks_at(3, state_only=state_only))
    theta = jnp.array(0.5)
    run = jax.jit(unroll.unroll(system, num_steps=7))
    state, infos = run(theta, system.init(theta, (), jax.random.key(0)), (), jax.random.key(1))
    # A finite loss reported together with a broken state still counts.
    fourth = 7.0 if state_only else 10.0
    np.testing.assert_array_equal(infos.loss, [10, 9, 8, fourth, 10, 10, 10])
    assert state.frozen
    np.testing.assert_array_equal(state.inner.value, 1 + 3 * 0.5)
    assert state.inner.time == 3


def test_without_a_finite_loss_the_largest_number_is_reported():
    system = unroll.freeze_diverged(breaks_at(0))
    state, infos = unroll.unroll(system, num_steps=2)(
        jnp.array(0.5), system.init(jnp.array(0.5), (), jax.random.key(0)), (), jax.random.key(1)
    )
    np.testing.assert_array_equal(infos.loss, np.finfo(np.float32).max)


def test_freezing_leaves_a_healthy_system_alone():
    plain, guarded = toys.nonlinear(), unroll.freeze_diverged(toys.nonlinear())
    theta, key = jnp.array([0.3, -0.2]), jax.random.key(0)
    results = []
    for system in (plain, guarded):
        state = system.init(theta, (), jax.random.key(1))
        state, infos = unroll.unroll(system, num_steps=5)(theta, state, (), jax.random.clone(key))
        results.append(infos.loss)
    np.testing.assert_array_equal(*results)


def test_two_short_unrolls_differ_from_one_long_one_only_in_their_keys():
    system, theta = toys.nonlinear(), jnp.array([0.3, -0.2])
    start = system.init(theta, (), jax.random.key(0))
    whole, infos = unroll.unroll(system, num_steps=6)(theta, start, (), jax.random.key(1))
    half = unroll.unroll(system, num_steps=3)
    middle, first = half(theta, start, (), jax.random.key(2))
    end, second = half(theta, middle, (), jax.random.key(3))
    np.testing.assert_allclose(jnp.concatenate([first.loss, second.loss]), infos.loss, rtol=1e-6)
    np.testing.assert_allclose(end, whole, rtol=1e-6)


def test_every_step_has_its_own_key():
    def step(theta, state, data, key):
        return state, StepInfo(jax.random.normal(key), jnp.array(False))

    system = System(lambda *args, **kwargs: (), step)
    _, infos = unroll.unroll(system, num_steps=1_000)((), (), (), jax.random.key(0))
    assert len(np.unique(infos.loss)) == 1_000
    assert abs(np.mean(infos.loss)) < 4 / np.sqrt(1_000)


def test_remat_saves_memory_in_the_promised_order():
    width = 256

    def init(theta, data, key, *, num_steps=None):
        return jnp.ones((width,))

    def step(theta, state, data, key):
        hidden = state
        for _ in range(8):
            hidden = jnp.tanh(theta * hidden)
        return hidden, StepInfo(jnp.mean(hidden), jnp.array(False))

    system, sizes = System(init, step), {}
    for remat in ("none", "step", "nested"):
        run = unroll.unroll(system, num_steps=256, remat=remat)

        def loss(theta, run=run):
            state = system.init(theta, (), jax.random.key(0))
            return run(theta, state, (), jax.random.key(1))[1].loss.mean()

        compiled = jax.jit(jax.grad(loss)).lower(jnp.full(width, 1.1)).compile()
        sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes["none"] > 4 * sizes["step"]
    assert sizes["step"] > 4 * sizes["nested"]


def learning_rate_of_a_noisy_descent():
    """Gradient descent on a quartic with noise from the key; theta is the learning rates."""

    def init(theta, data, key, *, num_steps=None):
        return jnp.ones_like(theta)

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        def inner_loss(params, data):
            return jnp.sum((params - data * jax.random.normal(key, (2,))) ** 4)

        value, grads = value_and_grad(inner_loss)(state, data)
        return state - theta * grads, StepInfo(value, jnp.array(False))

    return System(init, step)


@pytest.mark.parametrize(
    ("remat", "gradient", "loop"),
    [
        ("step", "mixed", "scan"),
        ("nested", "reverse", "scan"),
        ("nested", "mixed", "scan"),
        ("gradients", "reverse", "scan"),
        ("gradients", "mixed", "scan"),
        ("auto", "auto", "auto"),
        ("none", "reverse", "unrolled"),
        ("step", "mixed", "unrolled"),
    ],
)
def test_remat_gradient_and_loop_change_nothing_but_rounding(x64, remat, gradient, loop):
    system, theta = learning_rate_of_a_noisy_descent(), jnp.array([0.03, 0.02])
    # Eleven steps are three segments of three steps and two steps.
    num_steps = 4 if loop == "unrolled" else 11 if gradient == "reverse" else 6
    state = system.init(theta, (), jax.random.key(0))

    def grads(**settings):
        run = unroll.unroll(system, num_steps=num_steps, **settings)

        def loss(theta, data):
            return jnp.mean(run(theta, state, data, jax.random.key(4))[1].loss)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(theta, jnp.array([0.5, 1.0]))

    actual = grads(remat=remat, gradient=gradient, loop=loop)
    assert relative_error(actual, grads()) < 1e-12


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        unroll.unroll(toys.linear(), num_steps=0)
    with pytest.raises(ValueError, match="remat='all' is unknown"):
        unroll.unroll(toys.linear(), num_steps=1, remat="all")
    with pytest.raises(ValueError, match="loop='while' is unknown"):
        unroll.unroll(toys.linear(), num_steps=1, loop="while")
