import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import is_sparse, nm_mask, sr_ste, ste_sparse, step_adam


def run(opt, grads, params=None):
    """Updates and states, time axis first."""
    params = jnp.zeros(grads.shape[1:]) if params is None else params

    def step(state, g):
        updates, state = opt.update(g, state, params)
        return state, (updates, state, is_sparse(state))

    return jax.jit(lambda g: jax.lax.scan(step, opt.init(params), g)[1])(jnp.asarray(grads))


def test_repeats_adam_until_the_switch_and_a_transcription_after_it(x64):
    grads = np.random.default_rng(0).normal(size=(30, 3))
    grads[:, 2] *= np.arange(30) >= 12
    last_dense = 12
    updates, states, sparse = run(step_adam(0.1, max_steps=last_dense, b1=0.8, b2=0.95), grads)
    expected = run_adam(grads[:last_dense])
    np.testing.assert_allclose(updates[:last_dense], expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(sparse, np.arange(30) >= last_dense - 1)

    m = v = np.zeros(3)
    for t, g in enumerate(grads, start=1):
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g**2 if t <= last_dense else v
        if t > last_dense:
            v_hat = v / (1 - 0.95**last_dense)
            expected = -0.1 * m / (1 - 0.8**t) / np.sqrt(v_hat + 1e-8)
            np.testing.assert_allclose(updates[t - 1], expected, rtol=1e-11)
            # Bit for bit, and where there was no gradient before it is zero.
            np.testing.assert_array_equal(states[0].nu[t - 1], states[0].nu[last_dense - 1])
    assert states[0].nu[-1, 2] == 0
    assert np.isfinite(updates).all()


def run_adam(grads):
    opt = optax.adam(0.1, b1=0.8, b2=0.95)

    def step(state, g):
        updates, state = opt.update(g, state)
        return state, updates

    return jax.lax.scan(step, opt.init(jnp.zeros(3)), jnp.asarray(grads))[1]


@pytest.mark.parametrize(
    "mean", ["arithmetic", pytest.param("geometric", marks=pytest.mark.compiles)]
)
def test_switches_at_the_step_that_the_rule_names(x64, mean):
    """Gradients of constant size: v grows by b2ᵗ (1 − b2) g², slower and slower."""
    rng = np.random.default_rng(0)
    grads = np.array([0.2, 1.0, 0.5]) * rng.choice([-1.0, 1.0], size=(200, 3))
    lows, highs = np.array([1, 120, 1]), np.array([500, 500, 40])

    def switch(low, high):
        settings = {"window": 20, "b2": 0.95, "eps": 1e-3, "mean": mean}
        opt = step_adam(0.1, min_steps=low, max_steps=high, **settings)
        return run(opt, grads)[1][0].switched_at[-1]

    found = jax.jit(jax.vmap(switch))(lows, highs)
    v, changes, settled = np.zeros(3), [], None
    for t, g in enumerate(grads, start=1):
        new = 0.95 * v + 0.05 * g**2
        change = np.abs(new - v)
        changes.append(change.mean() if mean == "arithmetic" else np.exp(np.log(change).mean()))
        v = new
        if settled is None and t >= 20 and np.mean(changes[-20:]) < 1e-3:
            settled = t
    assert 40 < settled < 120
    np.testing.assert_array_equal(found, [settled, 120, 40])


@pytest.mark.compiles
def test_masks_and_sr_ste_come_on_together_and_nothing_explodes():
    """Inputs that are always zero have v = 0; SR-STE pulls at their weights."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 8)), jnp.float32).at[:, :3].set(0)
    y = x @ jnp.arange(8.0)[:, None]
    opt = step_adam(0.02, max_steps=20)

    @jax.jit
    def train(w):
        def step(carry, _):
            w, state = carry
            sparse = is_sparse(state)

            def loss(w):
                used = jnp.where(sparse, ste_sparse(w, nm_mask(w, n=1, m=4)), w)
                return jnp.mean((x @ used - y) ** 2)

            value, grads = jax.value_and_grad(loss)(w)
            pull = sr_ste(n=1, m=4, decay=2e-4 * sparse)
            grads, _ = pull.update(grads, pull.init(w), w)
            updates, state = opt.update(grads, state, w)
            return (w + updates, state), (value, sparse)

        return jax.lax.scan(step, (w, opt.init(w)), length=60)

    (w, _), (values, sparse) = train(0.1 * jnp.ones((8, 1)))
    np.testing.assert_array_equal(sparse, np.arange(60) >= 20)
    assert np.isfinite(w).all()
    # The pull moves a weight without gradients by at most lr · decay · |w| / √eps a step.
    assert np.abs(w[:3] - 0.1).max() <= 40 * 0.02 * 2e-4 * 0.1 / 1e-4 * 1.01
    assert values[-1] < values[20]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 1"):
        step_adam(0.1, max_steps=10, b2=1.0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        step_adam(0.1, max_steps=10, window=0)
    with pytest.raises(ValueError, match="max_steps=10 is below min_steps=20"):
        step_adam(0.1, max_steps=10, min_steps=20)
    with pytest.raises(ValueError, match="is_sparse: state is none of step_adam"):
        is_sparse(optax.adam(0.1).init(jnp.ones(2)))
