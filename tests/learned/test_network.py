import jax
import jax.numpy as jnp
import numpy as np

from metaopt.learned import _network as network


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
