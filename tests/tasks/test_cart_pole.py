import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks


def published_step(state, action, half_length):
    """The equations of 1983 without friction, as printed."""
    x, x_dot, theta, theta_dot = state
    g, m_c, m, dt = 9.8, 1.0, 0.1, 0.02
    force = 10.0 if action == 1 else -10.0
    sin, cos = np.sin(theta), np.cos(theta)
    numerator = g * sin + cos * (-force - m * half_length * theta_dot**2 * sin) / (m_c + m)
    theta_acc = numerator / (half_length * (4 / 3 - m * cos**2 / (m_c + m)))
    x_acc = (force + m * half_length * (theta_dot**2 * sin - theta_acc * cos)) / (m_c + m)
    return np.array(
        [x + dt * x_dot, x_dot + dt * x_acc, theta + dt * theta_dot, theta_dot + dt * theta_acc]
    )


def test_follows_the_published_equations(x64):
    environment = tasks.cart_pole()
    step = jax.jit(environment.step)
    for half_length in (0.5, 0.9):
        task = tasks.CartPoleTask(jnp.array(half_length))
        expected = np.array([0.01, -0.02, 0.03, 0.04])
        state = jnp.asarray(expected)
        for action in (1, 1, 0, 1, 0, 0, 0):
            state, reward, done = step(state, task, jnp.array(action), jax.random.key(0))
            expected = published_step(expected, action, half_length)
            np.testing.assert_allclose(state, expected, rtol=1e-12)
            assert reward == 1
            assert not done


def test_the_end_is_twelve_degrees_or_the_edge_of_the_track():
    environment = tasks.cart_pole()
    task = environment.sample(jax.random.key(0))
    assert task.half_length == 0.5

    def ends(state):
        return bool(environment.step(jnp.array(state), task, jnp.array(0), jax.random.key(1))[2])

    assert ends([2.39, 1.0, 0.0, 0.0])
    assert ends([0.0, 0.0, -0.2, -1.0])
    assert not ends([2.35, 1.0, 0.19, 0.5])


def test_lengths_stay_within_their_bounds():
    environment = tasks.cart_pole(half_length=(0.25, 1.0))
    lengths = jax.vmap(environment.sample)(jax.random.split(jax.random.key(0), 300)).half_length
    assert 0.25 <= np.min(lengths) < 0.3
    assert 0.95 < np.max(lengths) <= 1.0
    with pytest.raises(ValueError, match="cart_pole: shortest=1.0 is above longest=0.5"):
        tasks.cart_pole(half_length=(1.0, 0.5))
