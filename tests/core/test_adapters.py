from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core
from tests.helpers import central_differences, relative_error


class Shift(NamedTuple):
    target: jax.Array


CURVATURE = np.array([1.0, 3.0])


def shifted_quadratic():
    """½ (p − target − batch)ᵀ diag(CURVATURE) (p − target − batch), batch from a pool of shifts."""

    def loss(params, task_params, batch, key):
        error = params - task_params.target - batch
        return 0.5 * jnp.sum(CURVATURE.astype(params.dtype) * error**2), None

    return core.TaskFamily(
        sample=lambda key: Shift(jax.random.normal(key, (2,))),
        init=lambda task_params, key: jnp.zeros(2, task_params.target.dtype),
        batch=lambda data, task_params, key: data[jax.random.randint(key, (), 0, len(data))],
        loss=loss,
        normalise=lambda loss, task_params: jnp.minimum(jnp.nan_to_num(loss, nan=50.0), 50.0),
    )


def learned_sgd(seen=None):
    """SGD whose learning rate is exp(theta)."""

    def optimizer(theta, *, num_steps=None):
        if seen is not None:
            seen.append(num_steps)
        return optax.sgd(jnp.exp(theta))

    return core.LearnedOptimizer(lambda key: jnp.log(jnp.array(0.1)), optimizer)


def run(system, theta, data, num_steps, planned=None):
    key_init, *keys = jax.random.split(jax.random.key(0), num_steps + 1)
    state, losses = system.init(theta, data, key_init, num_steps=planned), []
    for key in keys:
        state, info = system.step(theta, state, data, key)
        losses.append(info.loss)
    return state, jnp.stack(losses)


def test_training_follows_sgd():
    data, theta = jnp.zeros((1, 2)), jnp.log(jnp.array(0.1))
    state, losses = run(core.training(shifted_quadratic(), learned_sgd()), theta, data, 4)
    target = state.task_params.target
    errors = [-target * (1 - 0.1 * CURVATURE) ** t for t in range(5)]
    np.testing.assert_allclose(state.params - target, errors[4], rtol=1e-5)
    expected = [0.5 * CURVATURE @ e**2 for e in errors[:4]]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_same_batch_loss_is_taken_after_the_update():
    data, theta = jnp.zeros((1, 2)), jnp.log(jnp.array(0.1))
    family, learned = shifted_quadratic(), learned_sgd()
    _, before = run(core.training(family, learned), theta, data, 4)
    _, after = run(core.training(family, learned, outer_loss="same_batch"), theta, data, 3)
    np.testing.assert_allclose(after, before[1:], rtol=1e-5)


def test_validation_loss_comes_from_the_outer_pool():
    inner, outer = jnp.zeros((1, 2)), jnp.full((1, 2), 0.5)
    theta = jnp.log(jnp.array(0.1))
    system = core.training(shifted_quadratic(), learned_sgd(), outer_loss="validation")
    state, losses = run(system, theta, core.Split(inner, outer), 3)
    error = state.params - state.task_params.target - 0.5
    np.testing.assert_allclose(losses[-1], 0.5 * CURVATURE @ error**2, rtol=1e-5)
    with pytest.raises(ValueError, match="pass metaopt.core.Split"):
        run(system, theta, inner, 1)


def test_optimizer_sees_the_raw_loss_and_meta_loss_is_normalised():
    family = shifted_quadratic()._replace(normalise=lambda loss, task_params: loss * 0 + 7.0)
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append(value)
        return jax.tree.map(jnp.zeros_like, updates), state

    spy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    learned = core.LearnedOptimizer(lambda key: jnp.zeros(()), lambda theta, *, num_steps=None: spy)
    state, losses = run(core.training(family, learned), jnp.zeros(()), jnp.zeros((1, 2)), 1)
    np.testing.assert_allclose(seen[0], 0.5 * CURVATURE @ state.task_params.target**2, rtol=1e-6)
    assert losses[0] == 7.0


def test_planned_number_of_steps_reaches_the_optimizer():
    seen = []
    system = core.training(shifted_quadratic(), learned_sgd(seen))
    run(system, jnp.zeros(()), jnp.zeros((1, 2)), 1, planned=jnp.array(30))
    assert {int(n) for n in seen} == {30}


def test_adaptation_has_the_meta_gradient_of_maml(x64):
    data = core.Split(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    system = core.adaptation(shifted_quadratic(), optax.sgd(0.1))

    def query_loss(theta):
        return run(system, theta, data, 2)[1][-1]

    theta = jnp.array([0.3, -0.2])
    target = run(system, theta, data, 1)[0].task_params.target
    expected = CURVATURE * (1 - 0.1 * CURVATURE) ** 4 * (theta - target)
    assert relative_error(jax.grad(query_loss)(theta), expected) < 1e-12
    assert relative_error(central_differences(query_loss, theta), expected) < 1e-6


def test_bilevel_training_reports_the_outer_loss_after_the_update(x64):
    problem = core.BilevelProblem(
        init=lambda key: jnp.zeros(2),
        inner_loss=lambda params, theta, data, key: 0.5 * jnp.sum((params - theta) ** 2),
        outer_loss=lambda params, theta, data, key: 0.5 * jnp.sum((params - data) ** 2),
    )
    system = core.bilevel_training(problem, optax.sgd(0.5))
    theta, data = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])

    def last_loss(theta):
        return run(system, theta, data, 3)[1][-1]

    reached = (1 - 0.5**3) * theta
    np.testing.assert_allclose(last_loss(theta), 0.5 * jnp.sum((reached - data) ** 2), rtol=1e-12)
    expected = (1 - 0.5**3) * (reached - data)
    np.testing.assert_allclose(jax.grad(last_loss)(theta), expected, rtol=1e-12)


def test_inner_gradients_are_taken_with_the_transformation_that_is_passed_in(x64):
    def doubled(function, *, has_aux=False):
        def value_and_grads(*args):
            value, grads = jax.value_and_grad(function, has_aux=has_aux)(*args)
            return value, 2 * grads

        return value_and_grads

    problem = core.BilevelProblem(
        init=lambda key: jnp.ones(2),
        inner_loss=lambda params, theta, data, key: 0.5 * jnp.sum(params**2),
        outer_loss=lambda params, theta, data, key: jnp.sum(params),
    )
    pool, key = jnp.zeros((1, 2)), jax.random.key(0)
    for system, theta, data in [
        (core.training(shifted_quadratic(), learned_sgd()), jnp.log(jnp.array(0.1)), pool),
        (
            core.adaptation(shifted_quadratic(), optax.sgd(0.1), outer_loss="train"),
            jnp.ones(2),
            pool,
        ),
        (core.bilevel_training(problem, optax.sgd(0.1)), jnp.zeros(()), ()),
    ]:
        start = system.init(theta, data, jax.random.clone(key))
        once, _ = system.step(theta, start, data, jax.random.clone(key))
        twice, _ = system.step(theta, start, data, jax.random.clone(key), value_and_grad=doubled)
        moved = once.params - start.params
        assert np.all(moved != 0)
        np.testing.assert_allclose(twice.params - start.params, 2 * moved, rtol=1e-9)


def test_unknown_outer_loss_is_refused():
    with pytest.raises(ValueError, match="training: outer_loss='test' is unknown"):
        core.training(shifted_quadratic(), learned_sgd(), outer_loss="test")
    with pytest.raises(ValueError, match="adaptation: outer_loss='test' is unknown"):
        core.adaptation(shifted_quadratic(), optax.sgd(0.1), outer_loss="test")
