import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import diffgrad, scale_by_diffgrad
from tests.optimizers import golden


def test_repeats_the_published_implementation_but_for_the_place_of_epsilon(x64):
    # There ε is divided by √(1 - b2ᵗ): a change of 3e-7 of a step at first, less later.
    assert golden.difference("diffgrad", golden.trajectory(diffgrad(0.01))) < 1e-7


def test_repeats_a_transcription(x64):
    path = golden.trajectory(diffgrad(0.01, weight_decay=0.1))
    for name, p in golden.start().items():
        p = np.asarray(p)
        m = v = before = np.zeros(p.shape)
        for step in range(golden.STEPS):
            index = (1.0 + np.arange(p.size)).reshape(p.shape)
            g = np.sin((step + 1) * index) + 0.5 * p + 0.1 * p
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            friction = 1 / (1 + np.exp(-np.abs(before - g)))
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            p = p - 0.01 * friction * m_hat / (np.sqrt(v_hat) + 1e-8)
            before = g
            np.testing.assert_allclose(path[name][step], p, rtol=1e-11, atol=1e-13)


def test_gradients_that_repeat_themselves_halve_the_steps_of_adam(x64):
    g = jnp.array([1.0, -3.0])
    ours, adam = scale_by_diffgrad(), optax.scale_by_adam()

    def two_updates(opt):
        first, state = opt.update(g, opt.init(g))
        return first, opt.update(g, state)[0]

    (first, second), (expected_first, expected_second) = jax.jit(
        lambda: (two_updates(ours), two_updates(adam))
    )()
    np.testing.assert_allclose(first, jax.nn.sigmoid(jnp.abs(g)) * expected_first, rtol=1e-12)
    np.testing.assert_allclose(second, 0.5 * expected_second, rtol=1e-12)


def test_ends_in_the_global_minimum_where_adam_ends_in_the_local_one(x64):
    def slope(x):
        return jnp.where(x <= 0, 2 * x + 0.6, 2 * x - 0.4)

    def end(opt):
        def step(carry, _):
            x, state = carry
            updates, state = opt.update(slope(x), state, x)
            return (x + updates, state), None

        x = jnp.array(-1.0)
        return jax.lax.scan(step, (x, opt.init(x)), length=299)[0][0]

    ours, adam = jax.jit(lambda: (end(diffgrad(0.1, b1=0.95)), end(optax.adam(0.1, b1=0.95))))()
    assert abs(ours + 0.3) <= 0.01
    assert abs(adam - 0.2) <= 0.01


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_decays_outside_their_range_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got -0.1"):
        diffgrad(0.1, **{name: -0.1})
