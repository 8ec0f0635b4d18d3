import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, learned, unroll
from tests.estimators import toys

CURVATURE, STEPS = np.array([0.5, 2.0]), 9


def system():
    """Gradient descent with a learned step size on ½ pᵀ diag(c) p."""

    def loss(params, task_params, batch, key):
        return 0.5 * jnp.sum(jnp.asarray(CURVATURE) * params**2), ()

    family = core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.array([1.0, -1.0]),
        batch=lambda data, task_params, key: (),
        loss=loss,
    )
    rule = learned.hyperparameters(optax.sgd, learning_rate=learned.real(0.1))
    return core.training(family, rule)


def delayed_descent(step_size, delay):
    """The same in NumPy: parameters and losses of every step."""
    past, params, losses = [np.array([1.0, -1.0])] * delay, np.array([1.0, -1.0]), []
    for _ in range(STEPS):
        stale = past.pop(0)
        past.append(params)
        losses.append(0.5 * np.sum(CURVATURE * stale**2))
        params = params - step_size * CURVATURE * stale
    return params, np.array(losses)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("delay", [1, 3])
def test_every_step_follows_the_gradient_of_k_steps_before(delay):
    late = unroll.delayed_gradients(system(), delay=delay)

    @jax.jit
    def final(step_size):
        theta = {"learning_rate": step_size}

        def step(state, index):
            state, info = late.step(theta, state, (), jax.random.fold_in(jax.random.key(1), index))
            return state, info.loss

        state, losses = jax.lax.scan(
            step, late.init(theta, (), jax.random.key(0)), jnp.arange(STEPS)
        )
        return state.params, losses

    params, losses = final(0.1)
    expected, expected_losses = delayed_descent(0.1, delay)
    np.testing.assert_allclose(params, expected, rtol=1e-12)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)
    # The meta-gradient sees the delay too.
    slope = jax.jacrev(lambda s: final(s)[0])(0.1)
    high, low = (delayed_descent(0.1 + h, delay)[0] for h in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-6)


def test_an_estimator_may_choose_how_it_differentiates_the_inner_gradient():
    late = unroll.delayed_gradients(system(), delay=2)
    theta = {"learning_rate": jnp.array(0.1)}

    def slope(gradient):
        loss = unroll.meta_loss(late, horizon=5, gradient=gradient)
        return jax.grad(lambda theta: loss(theta, (), jax.random.key(1)))(theta)["learning_rate"]

    mixed, reverse = jax.jit(lambda: (slope("mixed"), slope("reverse")))()
    assert reverse != 0
    np.testing.assert_allclose(mixed, reverse, rtol=1e-5)


def test_systems_that_cannot_be_delayed_are_refused():
    with pytest.raises(ValueError, match="delayed_gradients: delay=0 is below 1"):
        unroll.delayed_gradients(system(), delay=0)
    with pytest.raises(ValueError, match="does not take the keyword value_and_grad="):
        unroll.delayed_gradients(toys.nonlinear(), delay=1)

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        return state, core.StepInfo(state, jnp.array(False))

    bare = core.System(lambda theta, data, key, *, num_steps=None: theta, step)
    with pytest.raises(ValueError, match="the system's state is a .* without params"):
        unroll.delayed_gradients(bare, delay=1).init(jnp.zeros(()), (), jax.random.key(0))
