import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.core import StepInfo
from metaopt.unroll._plan import Plan, make_plan, step_cost

KEY_DATA = np.zeros(2, np.uint32)


def layers(depth, width, batch_size):
    """`depth` products of a batch with the state, followed by a plain gradient step."""

    def step(theta, state, data, key_data, index):
        def inner_loss(params):
            x = data
            for w in params:
                x = jnp.tanh(x @ w)
            return jnp.mean(x**2)

        value, grads = jax.value_and_grad(inner_loss)(state)
        state = [w - theta * g for w, g in zip(state, grads, strict=True)]
        return state, StepInfo(value, jnp.array(False))

    shape = jax.ShapeDtypeStruct((width, width), jnp.float32)
    data = jax.ShapeDtypeStruct((batch_size, width), jnp.float32)
    theta, index = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    return step, theta, [shape] * depth, data, KEY_DATA, index


def plan(args, *, num_steps, remat="auto", gradient="auto", loop="auto", has_choice=True):
    choices = {"remat": remat, "gradient": gradient, "loop": loop, "has_choice": has_choice}
    return make_plan(*args, num_steps=num_steps, **choices)


def test_state_and_operations_of_a_step_are_counted():
    cost = step_cost(*layers(depth=3, width=8, batch_size=16))
    assert cost.state == 3 * 8 * 8 * 4
    # Forward and by the parameters in each layer, by the input in all but the first.
    assert cost.operations == (3 + 3 + 2) * 2 * 16 * 8 * 8
    assert not cost.convolves


def test_operations_of_convolutions_are_counted():
    def step(theta, kernel, images):
        return jax.grad(lambda w: theta * jnp.sum(tasks.convolve(images, w, stride=2) ** 2))(kernel)

    shapes = ((), (3, 3, 2, 5), (4, 8, 6, 2))
    args = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    # Forward and by the kernel: 4 images of 4 x 3 pixels and 5 channels, 9 x 2 terms of each.
    assert step_cost(lambda *a: (step(*a), None), *args).operations == 2 * 2 * 4 * 4 * 3 * 5 * 9 * 2


def test_what_a_backward_pass_keeps_is_counted_once_and_without_what_is_the_same_in_every_step():
    def step(theta, state, data):
        # sin keeps cos x; the product keeps its two factors, one of which is data.
        return jnp.sin(state) * data * theta, None

    shape = jax.ShapeDtypeStruct((100,), jnp.float32)
    cost = step_cost(step, jax.ShapeDtypeStruct((), jnp.float32), shape, shape)
    # cos x, and sin(x) · data for theta's derivative.
    assert cost.kept == 2 * 400


def test_a_plan_that_was_made_is_left_alone():
    args = (None, None, None)
    given = Plan("gradients", "mixed", "unrolled")
    assert plan(args, num_steps=3, remat=given[0], gradient=given[1], loop=given[2]) == given


def test_remat_and_mixed_mode_pay_only_where_memory_and_traffic_do():
    deep = layers(depth=6, width=64, batch_size=512)
    assert plan(deep, num_steps=100) == Plan("step", "mixed", "scan")
    assert plan(deep, num_steps=400) == Plan("nested", "mixed", "scan")
    # Everything fits the cache.
    assert plan(deep, num_steps=2) == Plan("none", "reverse", "scan")
    # The state is as large as what happens inside a step.
    assert plan(layers(depth=2, width=512, batch_size=4), num_steps=100)[0] == "none"
    # Many operations for each byte that would be saved.
    assert plan(layers(depth=1, width=2048, batch_size=1024), num_steps=100)[0] == "none"
    # A system that leaves no choice, and settings of one's own.
    assert plan(deep, num_steps=100, has_choice=False) == Plan("step", "reverse", "scan")
    assert plan(deep, num_steps=2, remat="step") == Plan("step", "mixed", "scan")
    assert plan(deep, num_steps=100, remat="none") == Plan("none", "mixed", "scan")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a rule for CPUs")
def test_short_loops_around_convolutions_are_unrolled():
    def step(theta, state, data):
        window = jnp.broadcast_to(theta, (3, 1, 1))
        dims = ("NHC", "HIO", "NHC")
        convolve = jax.jit(
            lambda x: jax.lax.conv_general_dilated(x, window, (1,), "SAME", dimension_numbers=dims)
        )
        return convolve(state), None

    args = step, jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((2, 8, 1), jnp.float32)
    cost = step_cost(*args, ())
    assert cost.convolves
    assert cost.operations == 2 * (2 * 8) * 3
    assert plan((*args, ()), num_steps=5).loop == "unrolled"
    assert plan((*args, ()), num_steps=50).loop == "scan"
    assert plan(layers(depth=1, width=4, batch_size=4), num_steps=5).loop == "scan"
