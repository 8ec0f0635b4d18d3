import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import disco_adam

RATE, B1, B2, EPS = 0.3, 0.8, 0.95, 1e-6


def updates_of(opt, grads):
    """Every update for a sequence of gradients."""
    params = jnp.zeros_like(grads[0])

    def one(state, g):
        updates, state = opt.update(g, state, params)
        return state, updates

    return jax.lax.scan(one, opt.init(params), grads)[1]


def test_updates_are_those_of_adam_by_hand(x64):
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    ours = updates_of(disco_adam(RATE, b1=B1, b2=B2, eps=EPS, max_update=100.0), grads)
    adam = updates_of(optax.adam(RATE, b1=B1, b2=B2, eps=EPS), grads)
    np.testing.assert_allclose(ours, adam, rtol=1e-12)
    clipped = updates_of(disco_adam(RATE, b1=B1, b2=B2, eps=EPS, max_update=0.4), grads)
    np.testing.assert_allclose(clipped, np.clip(adam, -0.4 * RATE, 0.4 * RATE), rtol=1e-12)


def test_the_denominator_is_a_constant_in_closed_form(x64):
    first, second = jnp.array([0.5, 0.0]), jnp.array([-0.1, 0.0])
    opt = disco_adam(RATE, b1=B1, b2=B2, eps=EPS)

    def last(first, second):
        return jnp.sum(updates_of(opt, jnp.stack([first, second]))[1])

    by_first, by_second = jax.grad(last, (0, 1))(first, second)
    variance = (B2 * first**2 + second**2) * (1 - B2) / (1 - B2**2)
    scale = -RATE * (1 - B1) / (1 - B1**2) / (np.sqrt(variance) + EPS)
    np.testing.assert_allclose(by_second, scale, rtol=1e-12)
    np.testing.assert_allclose(by_first, B1 * scale, rtol=1e-12)


def test_zero_and_huge_gradients_have_finite_derivatives_at_first():
    def total(opt, slope):
        grads = slope * jnp.array([[0.0, 1.0, 1e30]] * 3)
        return jnp.sum(updates_of(opt, grads))

    ours = disco_adam(1e-3, eps=1e-8)
    value, slope = jax.value_and_grad(lambda slope: total(ours, slope))(1.0)
    assert np.isfinite(value)
    assert np.isfinite(slope)
    assert np.isnan(jax.grad(lambda slope: total(optax.adam(1e-3), slope))(1.0))


def test_moments_are_wide_and_updates_narrow_in_closed_form():
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(())}
    opt = disco_adam(optax.constant_schedule(0.1))
    updates, state = opt.update(params, opt.init(params), params, value=1.0)
    assert updates["w"].dtype == jnp.bfloat16
    assert state[0].mu["w"].dtype == state[0].nu["w"].dtype == jnp.float32
    # 1 - b2 has lost digits in float32.
    np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-4)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="disco_adam: max_update=0"):
        disco_adam(0.1, max_update=0.0)
    with pytest.raises(ValueError, match="disco_adam: eps=-1"):
        disco_adam(0.1, eps=-1.0)
