import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import complex_momentum, scale_by_complex_momentum

QUARTER = np.pi / 4


def play(tx, *, alternating, num_steps=500):
    """Distance from the equilibrium of min_x max_y x·y, from (1, 1)."""

    def step(carry, _):
        (x, y), (state_x, state_y) = carry
        update_x, state_x = tx.update(y, state_x)
        new_x = x + update_x
        update_y, state_y = tx.update(-(new_x if alternating else x), state_y)
        return ((new_x, y + update_y), (state_x, state_y)), None

    start = (jnp.ones(()), jnp.ones(()))
    carry = (start, (tx.init(start[0]), tx.init(start[1])))
    (end, _), _ = jax.lax.scan(step, carry, length=num_steps)
    return float(jnp.hypot(*end))


@pytest.mark.parametrize("alternating", [False, True])
def test_a_bilinear_game_converges_where_real_momentum_diverges(x64, alternating):
    assert play(complex_momentum(0.1, decay=0.8, phase=QUARTER), alternating=alternating) <= 0.05
    assert play(complex_momentum(0.1, decay=0.9, phase=0.0), alternating=alternating) > 10


def test_the_published_settings_reach_the_equilibrium_or_leave_it(x64):
    def settings(learning_rate, decay, phase, alternating=False):
        return play(
            complex_momentum(learning_rate, decay=decay, phase=phase), alternating=alternating
        )

    assert settings(0.03, 0.9, np.pi / 8) < 0.5
    assert settings(0.1, 0.9, np.pi / 8) > 10
    assert settings(0.3, 0.9, np.pi / 2) < 0.05
    assert settings(0.3, 0.5, np.pi, alternating=True) < 0.05


def test_repeats_complex_arithmetic(x64):
    gradients = np.random.default_rng(0).normal(size=(6, 3))
    tx = scale_by_complex_momentum(decay=0.8, phase=0.3)
    state, buffer = tx.init(jnp.zeros(3)), np.zeros(3, complex)
    for g in gradients:
        update, state = tx.update(jnp.asarray(g), state)
        buffer = 0.8 * np.exp(0.3j) * buffer + g
        np.testing.assert_allclose(update, buffer.real, rtol=1e-12)


def test_without_a_phase_it_is_the_momentum_of_optax(x64):
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    ours, theirs = complex_momentum(0.1, phase=0.0), optax.sgd(0.1, momentum=0.9)
    state, reference = ours.init(params), theirs.init(params)
    for index in range(5):
        grads = jax.tree.map(lambda x: jnp.sin(x + index), params)  # noqa: B023
        update, state = ours.update(grads, state)
        expected, reference = theirs.update(grads, reference)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), update, expected)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be in"):
        complex_momentum(0.1, decay=decay)
