"""Parameters that are split over devices, by automatic or by explicit axes of a mesh."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.helpers import output_on_devices, relative_error
from tests.learned.rows import ROWS

SPECS = {"w": PartitionSpec("rows", "columns"), "b": PartitionSpec("columns")}
META_GRADIENTS = ("adam_mlp", "velo")
NUM_STEPS = 3


def mesh_of(shape, kind):
    return jax.make_mesh(shape, ("rows", "columns"), axis_types=(kind, kind))


def initial_params():
    key_w, key_b = jax.random.split(jax.random.key(0))
    return {"w": jax.random.normal(key_w, (16, 8)), "b": jax.random.normal(key_b, (8,))}


def split(params, mesh):
    return {name: jax.device_put(x, NamedSharding(mesh, SPECS[name])) for name, x in params.items()}


def loss(params):
    return jnp.mean((params["w"] - 0.5) ** 2) + jnp.sum(jnp.sin(params["b"]) ** 2)


def step(tx, carry):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value)
    return optax.apply_updates(params, updates), state


def trained(learned_optimizer, theta, params):
    """Parameters after a few steps, of a scan, which refuses a state that changes its type."""
    tx = learned_optimizer.optimizer(theta, num_steps=NUM_STEPS)
    carry = (params, tx.init(params))
    return jax.lax.scan(lambda carry, _: (step(tx, carry), None), carry, length=NUM_STEPS)[0][0]


@pytest.mark.parametrize(("name", "make"), ROWS)
def test_explicit_axes_are_kept_by_parameters_and_state(name, make):
    learned_optimizer, params = make(), split(initial_params(), mesh_of((1, 1), AxisType.Explicit))
    theta = jax.eval_shape(learned_optimizer.init, jax.random.key(1))
    end = jax.eval_shape(lambda theta: trained(learned_optimizer, theta, params), theta)
    assert {path: x.sharding.spec for path, x in end.items()} == SPECS


def check_accumulators(state):
    """Where they are as long as their parameter, they are split as it is."""
    of_axis = {16: "rows", 8: "columns"}
    for path, leaf in jax.tree.leaves_with_path(state):
        if "'w'" in jax.tree_util.keystr(path):
            spec = (*leaf.sharding.spec, *[None] * leaf.ndim)[: leaf.ndim]
            assert spec == tuple(of_axis.get(size) for size in leaf.shape), path


def compare_on_devices():
    """Prints, for every rule, how far eight devices are from one."""
    for name, make in ROWS:
        learned_optimizer = make()
        theta = learned_optimizer.init(jax.random.key(1))
        for kind in AxisType.Auto, AxisType.Explicit:
            params = split(initial_params(), mesh_of((4, 2), kind))
            tx = learned_optimizer.optimizer(theta, num_steps=NUM_STEPS)
            check_accumulators(tx.init(params))

        def end(theta, params, learned_optimizer=learned_optimizer):
            return trained(learned_optimizer, theta, params)

        def slope(theta, params, end=end):
            return jax.grad(lambda theta: loss(end(theta, params)))(theta)

        for function in (end, slope)[: 1 + (name in META_GRADIENTS)]:
            run = jax.jit(function)
            one, eight = (jax.device_get(run(theta, start)) for start in (initial_params(), params))
            print(name, relative_error(eight, one))


@pytest.mark.slow
def test_eight_devices_with_explicit_axes_agree_with_one():
    script = f"from {__name__} import compare_on_devices; compare_on_devices()"
    lines = output_on_devices(script, 8).splitlines()
    assert len(lines) == len(ROWS) + len(META_GRADIENTS)
    for line in lines:
        name, error = line.split()
        assert float(error) < 1e-5, name
