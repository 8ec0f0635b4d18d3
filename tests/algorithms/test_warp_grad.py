import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import Warped, maml, warp_grad
from metaopt.core import Split
from tests.algorithms.tanh_network import (
    FAMILY,
    estimate,
    perturbed,
    support_set,
    task,
)
from tests.helpers import central_differences, relative_error

RATE = 0.05


def loss(params, task_params, batch, key=None):
    """A layer that adapts, and a nonlinear residual warp behind it."""
    layer, warp = params
    hidden = jnp.tanh(batch.inputs @ layer["in"])
    hidden = hidden + jnp.tanh(hidden @ warp)
    return jnp.mean((hidden @ layer["out"] - batch.labels) ** 2), ()


def init(task_params, key):
    layer = {"in": jnp.full((1, 3), 0.4), "out": jnp.full((3, 1), 0.3)}
    return Warped(layer, jnp.zeros((3, 3)))


WARPED = FAMILY._replace(init=init, loss=loss)


def start():
    return perturbed(init((), None))


def test_one_step_is_the_meta_gradient_through_the_step(x64):
    frozen = optax.multi_transform(
        {"params": optax.sgd(RATE), "warp": optax.set_to_zero()}, Warped("params", "warp")
    )
    ours = estimate(warp_grad(WARPED, optax.sgd(RATE), num_steps=1, num_tasks=3), start())
    theirs = estimate(maml(WARPED, frozen, num_steps=1, num_tasks=3), start())
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert relative_error(ours.grad, theirs.grad) < 1e-12


def path(theta, support, momentum, num_steps):
    """Points of heavy-ball descent by hand: parameters and their last move."""
    layer, move = theta.params, jax.tree.map(jnp.zeros_like, theta.params)
    points = []
    for _ in range(num_steps):
        points.append((layer, move))
        layer, move = step(Warped(layer, theta.warp), move, support, momentum)
    return points, layer


def step(warped, move, support, momentum):
    grads = jax.grad(lambda layer: loss(Warped(layer, warped.warp), task(), support)[0])(
        warped.params
    )
    move = jax.tree.map(lambda m, g: momentum * m + g, move, grads)
    return jax.tree.map(lambda p, m: p - RATE * m, warped.params, move), move


@pytest.mark.parametrize("momentum", [pytest.param(0.0, marks=pytest.mark.slow), 0.8])
def test_the_meta_gradient_is_that_of_single_steps_from_constant_points(x64, momentum):
    num_steps, support, query = 3, support_set(12), support_set(13)
    inner_opt = optax.sgd(RATE, momentum=momentum or None)
    family = WARPED._replace(batch=lambda data, task_params, key: data)
    learner = warp_grad(family, inner_opt, num_steps=num_steps, num_tasks=1)
    ours = estimate(learner, start(), Split(support, query))
    points, _ = path(start(), support, momentum, num_steps)

    def objective(theta):
        """The points stay where they are, but for a move of theta's params that they share."""
        shift = jax.tree.map(jnp.subtract, theta.params, start().params)
        total = 0
        for layer, move in points:
            warped = Warped(jax.tree.map(jnp.add, layer, shift), theta.warp)
            layer, _ = step(warped, move, support, momentum)
            total += loss(Warped(layer, theta.warp), task(), query)[0]
        return total / num_steps

    np.testing.assert_allclose(ours.loss, objective(start()), rtol=1e-10)
    assert relative_error(ours.grad, central_differences(objective, start())) < 1e-6


def test_tasks_adapt_all_but_the_warp(x64):
    support = support_set()
    learner = warp_grad(WARPED, optax.sgd(RATE, momentum=0.8), num_steps=3)
    adapted = jax.jit(learner.adapt)(start(), task(), support, jax.random.key(0))
    _, expected = path(start(), support, 0.8, 3)
    assert relative_error(adapted.params, expected) < 1e-12
    np.testing.assert_array_equal(adapted.warp, start().warp)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="warp_grad: num_steps must be at least 1"):
        warp_grad(WARPED, optax.sgd(RATE), num_steps=0)
    with pytest.raises(ValueError, match="gradient='second' is unknown"):
        warp_grad(WARPED, optax.sgd(RATE), gradient="second")
    plain = warp_grad(FAMILY, optax.sgd(RATE))
    with pytest.raises(ValueError, match="pass metaopt.algorithms.linear_warps"):
        estimate(plain, plain.init(jax.random.key(0)))
