import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
def test_blocks_change_neither_values_nor_derivatives(monkeypatch, shape):
    monkeypatch.setattr(network, "BLOCK", 2 * math.prod(shape) // max(shape))
    monkeypatch.setattr(network, "MIN_BLOCKS", 1)
    keys = jax.random.split(jax.random.key(0), 4)
    theta = network.network_init(keys[0], (3, 4, 2))
    axis = shape.index(max(shape))
    thin = tuple(1 if i == axis else n for i, n in enumerate(shape))
    arrays = (jax.random.normal(keys[1], (2, *shape)), jax.random.normal(keys[2], (1, *thin)))
    extra = jax.random.normal(keys[3], (4, *shape[:1], *[1] * (len(shape) - 1)))

    def features(planes, other):
        return jnp.concatenate([planes, planes[:1] * other])

    def finish(hidden, extra):
        return network.after_first(theta, hidden + extra, num_outputs=2)

    def blocked(weights, arrays, extra):
        return network.mix_normalised_in_blocks(
            weights, features, arrays, finish, [extra], eps=0.1, shape=shape
        )

    def whole(weights, arrays, extra):
        hidden = network.mix_normalised(weights, features(*arrays), eps=0.1, num_axes=len(shape))
        return finish(hidden, extra)

    arguments = (theta["linear_0"]["w"], arrays, extra)
    assert "scan" in str(jax.make_jaxpr(blocked)(*arguments))

    def value_and_grad(function):
        def loss(*arguments):
            out = function(*arguments)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments)

    assert helpers.relative_error(value_and_grad(blocked), value_and_grad(whole)) < 1e-12
    batched = jax.vmap(blocked, in_axes=(None, 0, None))
    twice = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), arrays)
    expected = whole(arguments[0], jax.tree.map(lambda x: 2 * x, arrays), extra)
    actual = jax.jit(batched)(arguments[0], twice, extra)[1]
    assert helpers.relative_error(actual, expected) < 1e-12
