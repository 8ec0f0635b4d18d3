import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import learned
from metaopt.learned import _network as network
from tests import helpers


def test_initial_weights_are_truncated_normal():
    w = network.network_init(jax.random.key(0), (100, 400, 3))["linear_0"]["w"]
    assert np.abs(w).max() <= 2 * 0.1
    # The variance of a standard normal truncated at ±2 is 1 - 4 φ(2) / (2 Φ(2) - 1).
    expected = 0.1 * np.sqrt(1 - 4 * np.exp(-2) / np.sqrt(2 * np.pi) / 0.954499736)
    # Relative standard error of a standard deviation from n values: at most 1 / √(2n).
    assert abs(w.std() / expected - 1) < 4 / np.sqrt(2 * w.size)


def test_network_is_the_textbook_one(x64):
    theta = network.network_init(jax.random.key(0), (3, 4, 5, 2))
    theta = jax.tree.map(lambda x: x + 0.1, theta)
    planes = jax.random.normal(jax.random.key(1), (3, 2, 6))
    theta_np = jax.tree.map(np.asarray, theta)
    x = np.moveaxis(np.asarray(planes), 0, -1)
    for i in range(3):
        x = x @ theta_np[f"linear_{i}"]["w"] + theta_np[f"linear_{i}"]["b"]
        x = np.maximum(x, 0) if i < 2 else x
    first = theta["linear_0"]
    hidden = network.mix(first["w"], planes) + network.bias(first["b"], planes)
    actual = network.after_first(theta, hidden, num_outputs=1)
    np.testing.assert_allclose(actual, np.moveaxis(x, -1, 0)[:1], rtol=1e-12)


def test_mix_normalised_is_normalise_then_mix(x64):
    weights = jax.random.normal(jax.random.key(0), (3, 4))
    planes = jax.random.normal(jax.random.key(1), (3, 2, 5, 6))
    for num_axes, axes in ((2, (2, 3)), (3, (1, 2, 3))):
        normal = planes / np.sqrt(0.1 + np.mean(np.square(planes), axis=axes, keepdims=True))
        actual = network.mix_normalised(weights, planes, eps=0.1, num_axes=num_axes)
        np.testing.assert_allclose(actual, jnp.tensordot(weights.T, normal, 1), rtol=1e-12)


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(7, 5), (2, 9, 3)])
@pytest.mark.parametrize("max_products", [0, 100], ids=["in blocks", "written out"])
def test_large_tensors_have_the_same_values_and_derivatives(monkeypatch, shape, max_products):
    monkeypatch.setattr(network, "BLOCK", 2 * math.prod(shape) // max(shape))
    monkeypatch.setattr(network, "MIN_ENTRIES", 0)
    keys = jax.random.split(jax.random.key(0), 4)
    theta = network.network_init(keys[0], (4, 5, 3, 2))
    axis = shape.index(max(shape))
    thin = tuple(1 if i == axis else n for i, n in enumerate(shape))
    arrays = (jax.random.normal(keys[1], (2, *shape)), jax.random.normal(keys[2], (1, *thin)))
    extra = jax.random.normal(keys[3], (5, *shape[:1], *[1] * (len(shape) - 1)))

    def features(planes, other):
        return [planes, planes * other]

    def outputs(min_blocks, max_products):
        def function(theta, arrays, extra):
            monkeypatch.setattr(network, "MIN_BLOCKS", min_blocks)
            monkeypatch.setattr(network, "MAX_PRODUCTS", max_products)
            first = theta["linear_0"]
            return network.network_of_entries(
                theta, first["w"], first["b"] + 0.1, features, arrays, [extra],
                eps=0.1, num_outputs=2, shape=shape,
            )  # fmt: skip

        return function

    large, whole = outputs(1, max_products), outputs(1000, 0)
    arguments = (theta, arrays, extra)
    texts = [str(jax.make_jaxpr(function)(*arguments)) for function in (large, whole)]
    assert ["scan" in text for text in texts] == [True, False]
    assert ("dot_general" in texts[0]) == (max_products == 0)

    def all_modes(function):
        def loss(*arguments):
            out = function(*arguments)
            return jnp.sum(jnp.sin(out)), out

        _, pushed = jax.jvp(function, arguments, jax.tree.map(jnp.cos, arguments))
        grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arguments)
        return function(*arguments), out, grads, pushed

    assert helpers.relative_error(jax.jit(lambda: all_modes(large))(), all_modes(whole)) < 1e-12
    batched = jax.vmap(large, in_axes=(None, 0, None))
    twice = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), arrays)
    expected = whole(theta, jax.tree.map(lambda x: 2 * x, arrays), extra)
    actual = jax.jit(batched)(theta, twice, extra)[1]
    assert helpers.relative_error(actual, expected) < 1e-12


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [learned.adafac_mlp, learned.celo2, learned.velo])
def test_rules_make_the_same_steps_on_tensors_that_count_as_large(monkeypatch, make):
    rule = make()
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (6, 9)), "k": jax.random.normal(keys[1], (2, 5, 3))}
    theta = rule.init(keys[2])

    def after_two_steps(block):
        monkeypatch.setattr(network, "BLOCK", block)
        monkeypatch.setattr(network, "MIN_ENTRIES", 2 * block)

        def run(theta, params):
            opt = rule.optimizer(theta, num_steps=10)
            state = opt.init(params)
            for scale in (1.0, 0.3):
                grads = jax.tree.map(lambda x, scale=scale: jnp.cos(scale * x), params)
                updates, state = opt.update(grads, state, params, value=jnp.array(scale))
                params = optax.apply_updates(params, updates)
            return params

        return jax.jit(run)(theta, params)

    small, large = after_two_steps(2**14), after_two_steps(6)
    assert helpers.relative_error(large, small) < 1e-12
    assert helpers.relative_error(small, params) > 1e-6
