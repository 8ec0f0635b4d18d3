import jax
import jax.numpy as jnp
import numpy as np

from metaopt.eval import loss_slice, roughness, smoothed

X = np.linspace(-1, 1, 201)


def test_losses_along_a_unit_direction_share_one_key():
    theta, direction = (
        {"a": jnp.array([1.0, 2.0]), "b": jnp.array(0.5)},
        {
            "a": jnp.array([0.0, 3.0]),
            "b": jnp.array(4.0),
        },
    )

    def loss(theta, data, key):
        return theta["a"] @ theta["a"] + data * theta["b"] + jax.random.normal(key)

    offsets = jnp.linspace(-0.5, 0.5, 7)
    actual = loss_slice(
        loss, theta, direction, 10.0, jax.random.key(0), offsets=offsets, points_at_once=3
    )
    x = np.asarray(offsets)
    expected = 1 + (2 + 0.6 * x) ** 2 + 10 * (0.5 + 0.8 * x)
    noise = float(jax.random.normal(jax.random.key(0)))
    np.testing.assert_allclose(actual, expected + noise, rtol=1e-5)


def test_a_direction_of_zeros_stays_where_it_is():
    losses = loss_slice(
        lambda theta, data, key: jnp.sum(theta**2),
        jnp.ones(2),
        jnp.zeros(2),
        (),
        jax.random.key(1),
        offsets=jnp.linspace(-1, 1, 3),
    )
    np.testing.assert_array_equal(losses, 2.0)


def test_roughness_counts_how_often_the_range_is_crossed():
    assert roughness(np.ones(5)) == 1
    np.testing.assert_allclose(roughness(np.exp(X)), 1)
    np.testing.assert_allclose(roughness(X**2), 2)
    np.testing.assert_allclose(roughness(np.cos(8 * np.pi * X)), 16, rtol=1e-3)
    np.testing.assert_allclose(roughness([0.0, np.nan, 1.0]), 1)


def test_smoothing_a_parabola_adds_the_variance_in_the_middle():
    actual = smoothed(X**2, X, 0.1)
    np.testing.assert_allclose(actual[60:141], X[60:141] ** 2 + 0.1**2, atol=1e-4)
    values = X**2
    values[100] = np.inf
    assert np.isfinite(smoothed(values, X, 0.1)).all()
