import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from metaopt.optimizers import auto_axes, shampoo

SPEC = PartitionSpec("rows", "columns")
RULES = {
    "muon": lambda: optax.contrib.muon(0.1),
    "shampoo": lambda: shampoo(0.1, every=1),
}


def matrix():
    return {"w": jax.random.normal(jax.random.key(0), (6, 4))}


def split(params):
    """On one device: types alone are refused."""
    mesh = jax.make_mesh((1, 1), ("rows", "columns"))
    return jax.device_put(params, NamedSharding(mesh, SPEC))


def trained(tx, params):
    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(jnp.sin, params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=3)[0][0]


@pytest.mark.parametrize("name", RULES)
def test_explicit_axes_give_the_numbers_of_no_mesh(name):
    rule, params = RULES[name](), matrix()
    expected = jax.jit(lambda params: trained(rule, params))(params)
    with pytest.raises(Exception, match="Contracting dimensions are sharded|out_sharding"):
        jax.eval_shape(lambda: trained(rule, split(params)))
    end = jax.jit(lambda params: trained(auto_axes(rule), params))(split(params))
    assert end["w"].sharding.spec == SPEC
    np.testing.assert_allclose(end["w"], expected["w"], rtol=1e-5, atol=1e-6)


def test_without_a_mesh_the_program_is_the_same():
    rule, params = RULES["muon"](), matrix()
    programs = [
        jax.make_jaxpr(tx.update)(params, tx.init(params), params)
        for tx in (optax.with_extra_args_support(rule), auto_axes(rule))
    ]
    assert str(programs[0]) == str(programs[1])


def test_steps_outside_jit_are_traced_once_and_pass_functions_on():
    traces = []

    def update(updates, state, params=None, *, value, value_fn):
        traces.append(value_fn)
        return jax.tree.map(lambda g: (g @ g.T) @ g * value, updates), state + 1

    rule = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    tx, params = auto_axes(rule), split(matrix())
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params, value=2.0, value_fn=optax.tree.sum)
    assert traces == [optax.tree.sum]
    assert state == 3
    w = np.asarray(matrix()["w"])
    np.testing.assert_allclose(updates["w"], 2 * w @ w.T @ w, rtol=1e-5)
    assert updates["w"].sharding.spec == SPEC
