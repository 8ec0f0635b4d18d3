import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import annealed_alpha, soft_threshold
from tests.optimizers import networks


def test_values_and_derivatives_are_those_of_the_formula(x64):
    rng = np.random.default_rng(0)
    w, t = rng.normal(size=(5, 3)), np.array([[-1.0, 0.3, -3.0]])
    w[0, 0] = 0.0
    slopes, s = rng.normal(size=(5, 3)), 1 / (1 + np.exp(-t))

    @jax.jit
    def both(w, t):
        return jax.vjp(lambda w, t: soft_threshold(w, t, alpha=0.3), w, t)[0], jax.grad(
            lambda w, t: jnp.sum(slopes * soft_threshold(w, t, alpha=0.3)), (0, 1)
        )(w, t)

    value, (by_w, by_t) = both(w, t)
    kept = np.abs(w) > s
    np.testing.assert_allclose(value, np.sign(w) * np.maximum(np.abs(w) - s, 0), atol=1e-15)
    assert (np.asarray(value)[~kept] == 0).all()
    factor = np.where(kept, 1, 0.3)
    np.testing.assert_allclose(by_w, slopes * factor, rtol=1e-12)
    expected = -(s * (1 - s)) * np.sum(np.sign(w) * slopes * factor, axis=0, keepdims=True)
    np.testing.assert_allclose(by_t, expected, rtol=1e-12)


def test_the_schedule_falls_from_its_start_to_almost_nothing(x64):
    schedule = annealed_alpha(40, initial=0.8)
    values = np.asarray(schedule(jnp.arange(60)))
    np.testing.assert_allclose(values[0], 0.8, rtol=1e-12)
    np.testing.assert_allclose(values[40:], 0.8 / (1 + np.exp(6)), rtol=1e-10)
    assert (np.diff(values) <= 0).all()
    i = 25
    by_hand = max((1 + np.cos(np.pi * i / 40)) / 2, 1 - 1 / (1 + np.exp(6 - 12 * i / 40)))
    np.testing.assert_allclose(values[i], 0.8 * by_hand, rtol=1e-12)


@pytest.mark.slow
def test_weights_become_zero_without_a_target_and_digits_are_still_read():
    train, test = networks.digits()
    layers = networks.dense((64, 64, 64, 10), jax.random.key(0))
    start = [{**layer, "t": jnp.full((1, layer["w"].shape[1]), -5.0)} for layer in layers]
    num_steps = 1200
    alpha = annealed_alpha(num_steps)
    opt = optax.chain(
        # Of the thresholds alone: it raises them towards 0.
        optax.add_decayed_weights(1e-3, mask=[{"w": False, "b": False, "t": True} for _ in layers]),
        optax.adam(3e-3),
    )

    def sparse(params, alpha):
        return [{"w": soft_threshold(p["w"], p["t"], alpha=alpha), "b": p["b"]} for p in params]

    @jax.jit
    def run(train, test):
        def step(carry, index):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(1), index)
            rows = jax.random.randint(key, (64,), 0, len(train[1]))

            def loss(params):
                weights = sparse(params, alpha(index))
                logits = networks.apply(weights, train[0][rows], jax.nn.relu)
                return networks.cross_entropy(logits, train[1][rows])

            updates, state = opt.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, opt.init(start)), jnp.arange(num_steps))
        weights = sparse(params, 0.0)
        logits = networks.apply(weights, test[0], jax.nn.relu)
        zeros = sum(jnp.sum(p["w"] == 0) for p in weights) / sum(p["w"].size for p in weights)
        return jnp.mean(jnp.argmax(logits, axis=1) == test[1]), zeros

    accuracy, zeros = map(float, run(*jax.tree.map(jnp.asarray, (train, test))))
    assert zeros >= 0.3
    assert accuracy >= 0.95


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        annealed_alpha(0)
    with pytest.raises(ValueError, match=r"initial must be in \[0, 1\], got 1.5"):
        annealed_alpha(10, initial=1.5)
