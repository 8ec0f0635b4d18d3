import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import tasks
from metaopt.core import LearnedOptimizer
from metaopt.learned import adafac_mlp, mlp_roles, mup, mup_scale, scale_by_mup
from tests import helpers
from tests.learned import unrolled

SHAPES = {
    "embed": (10, 16),
    "block": {"conv": (3, 3, 4, 8), "query": (16, 4, 4), "up": (16, 64), "scale": (16,)},
    "logits": (16, 3),
}
PARAMS = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
ROLES = {
    "embed": "embedding",
    "block": {"conv": "hidden", "query": 16, "up": "hidden", "scale": "norm"},
    "logits": "output",
}


def role(path, param):
    """The same roles by name; paths look like block/up."""
    if path == "block/query":
        return 16
    if param.ndim < 2:
        return "norm"
    return "hidden" if path.startswith("block/") else "output"


@pytest.mark.parametrize("roles", [ROLES, role], ids=["tree", "function"])
def test_hidden_weights_are_divided_by_their_fan_in_and_nothing_else_is(roles):
    expected = {
        "embed": 1.0,
        "block": {"conv": 1 / 36, "query": 1 / 16, "up": 1 / 16, "scale": 1.0},
        "logits": 1.0,
    }
    assert mup_scale(PARAMS, roles) == expected
    relative = mup_scale(PARAMS, roles, hidden_mult=64, exponent=0.5)
    assert relative["block"] == {"conv": 64 / 6, "query": 16, "up": 16, "scale": 1}
    assert relative["embed"] == relative["logits"] == 1
    shapes = jax.eval_shape(lambda: PARAMS)
    assert mup_scale(shapes, roles) == expected


def test_the_first_and_the_last_matrix_of_a_chain_are_input_and_output():
    family = tasks.mup_mlp((2, 2), 3, hidden=(5, 4, 3))
    params = jax.eval_shape(lambda: family.init((), jax.random.key(0)))
    names = [layer["w"] for layer in mlp_roles(params)]
    assert names == ["input", "hidden", "hidden", "output"]
    assert [layer["b"] for layer in mlp_roles(params)] == ["bias"] * 4
    scale = mup_scale(params, mlp_roles(params))
    assert [layer["w"] for layer in scale] == [1, 1 / 5, 1 / 4, 1]
    assert mlp_roles({"b": jnp.zeros(2)}) == {"b": "bias"}


def test_adam_in_mup_is_adam_with_a_learning_rate_per_tensor():
    params = unrolled.params_like(jax.random.key(0), {"hidden": (4, 3), "bias": (3,)})
    grads = jax.tree.map(lambda p: 2 * p, params)
    scale = mup_scale(params, {"hidden": "hidden", "bias": "bias"})
    opt = optax.chain(optax.adam(0.1), scale_by_mup(scale))
    expected = optax.partition(
        {"hidden": optax.adam(0.1 / 4), "bias": optax.adam(0.1)},
        {"hidden": "hidden", "bias": "bias"},
    )
    updates, _ = opt.update(grads, opt.init(params), params)
    others, _ = expected.update(grads, expected.init(params), params)
    assert helpers.relative_error(updates, others) < 1e-6


def test_wraps_a_learned_optimizer_and_keeps_its_theta_and_dtypes():
    learned = adafac_mlp(step_mult=0.1)
    theta = learned.init(jax.random.key(0))
    params = {"w": jnp.ones((4, 2), jnp.bfloat16), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    scale = {"w": 0.25, "b": jnp.array(2.0)}
    by_tree, by_function = mup(learned, scale), mup(learned, lambda params: scale)
    assert helpers.relative_error(by_tree.init(jax.random.key(0)), theta) == 0

    @jax.jit
    def first(grads, params):
        steps = (x.optimizer(theta) for x in (learned, by_tree, by_function))
        return [opt.update(grads, opt.init(params), params)[0] for opt in steps]

    plain, tree, function = first(grads, params)
    for updates in (tree, function):
        assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32, jnp.bfloat16]
        np.testing.assert_array_equal(updates["b"], 2 * plain["b"])
        np.testing.assert_array_equal(updates["w"], 0.25 * plain["w"])


def test_the_rule_sees_scaled_gradients():
    descent = LearnedOptimizer(lambda key: (), lambda theta, *, num_steps=None: optax.sgd(1.0))
    params = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
    scale = {"w": 0.25, "b": 1.0}
    opt = mup(
        descent, scale, gradient_scale=lambda p: jax.tree.map(lambda _: p["w"].shape[0] / 2, p)
    ).optimizer(())
    updates, _ = opt.update(params, opt.init(params), params)
    np.testing.assert_array_equal(updates["w"], -2 * 0.25)
    np.testing.assert_array_equal(updates["b"], -2)


def test_scales_an_equinox_model_whose_layout_is_the_transpose():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)

    def role(path, param):
        if param.ndim < 2:
            return "bias"
        return param.shape[1] if path.split("/")[1] == "1" else "input"

    scale = mup_scale(params, role)
    assert [layer.weight for layer in scale.layers] == [1, 1 / 8, 1]
    # The tree of constants can itself be called, and is yet no function.
    descent = LearnedOptimizer(lambda key: (), lambda theta, *, num_steps=None: optax.sgd(1.0))
    opt = mup(descent, scale).optimizer(())
    updates, _ = opt.update(params, opt.init(params), params)
    for index, factor in enumerate((1, 1 / 8, 1)):
        np.testing.assert_array_equal(
            updates.layers[index].weight, -factor * params.layers[index].weight
        )


def test_rejects_roles_without_a_meaning():
    with pytest.raises(ValueError, match="the role of 'w' is 'wide'"):
        mup_scale({"w": jnp.ones((2, 2))}, {"w": "wide"})
    with pytest.raises(ValueError, match="the role of 'w' is 0"):
        mup_scale({"w": jnp.ones((2, 2))}, {"w": 0})
    with pytest.raises(ValueError, match=r"'b' of shape \(2,\) is 'hidden' but has no fan-in"):
        mup_scale({"b": jnp.ones(2)}, lambda path, param: "hidden")
    opt = scale_by_mup(lambda params: mup_scale(params, mlp_roles(params)))
    with pytest.raises(ValueError, match="scale_by_mup: update got no params"):
        opt.update({"w": jnp.ones(2)}, opt.init({"w": jnp.ones(2)}))
