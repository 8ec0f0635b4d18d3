import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import adagrad_norm, scale_by_adagrad_norm
from tests.optimizers import golden


def test_repeats_a_transcription(x64):
    path = golden.trajectory(adagrad_norm(0.7, b0=0.1))
    params = {name: np.asarray(p) for name, p in golden.start().items()}
    square = 0.1**2
    for step in range(golden.STEPS):
        grads = {
            name: np.sin((step + 1) * (1.0 + np.arange(p.size)).reshape(p.shape)) + 0.5 * p
            for name, p in params.items()
        }
        square += sum(np.sum(g**2) for g in grads.values())
        params = {name: p - 0.7 * grads[name] / np.sqrt(square) for name, p in params.items()}
        for name, p in params.items():
            np.testing.assert_allclose(path[name][step], p, rtol=1e-12)


def test_a_norm_per_leaf_is_the_rule_for_each_leaf_alone(x64):
    rule = scale_by_adagrad_norm(per_leaf=True)
    grads = golden.gradients(golden.start(), 0)
    together, state = rule.update(grads, rule.init(grads))
    for name, g in grads.items():
        whole = scale_by_adagrad_norm()
        alone, expected = whole.update(g, whole.init(g))
        np.testing.assert_allclose(together[name], alone, rtol=1e-14)
        np.testing.assert_allclose(state.norm[name], expected.norm, rtol=1e-14)


def test_norms_whose_squares_overflow_are_found():
    rule = scale_by_adagrad_norm(b0=0.0)
    grads = {"w": jnp.full((2, 2), 3e30), "b": jnp.array(0.0)}
    update, state = rule.update(grads, rule.init(grads))
    np.testing.assert_allclose(update["w"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.norm, 6e30, rtol=1e-6)
    none = jax.tree.map(jnp.zeros_like, grads)
    update, _ = rule.update(none, rule.init(none))
    assert all((x == 0).all() for x in jax.tree.leaves(update))


def test_least_squares_converge_for_any_start_where_other_steps_diverge(x64):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(1000, 50)))
    targets = inputs @ jnp.asarray(rng.normal(size=50))
    batches = jnp.asarray(rng.integers(0, 1000, size=(2000, 20)))
    starts = jnp.array([1e-2, 1e-1, 1.0, 10.0, 100.0])

    def gradient(x, rows):
        return inputs[rows].T @ (inputs[rows] @ x - targets[rows]) / len(rows)

    def final(opt):
        def step(carry, rows):
            x, state = carry
            updates, state = opt.update(gradient(x, rows), state, x)
            return (x + updates, state), None

        x = jnp.zeros(50)
        (x, _), _ = jax.lax.scan(step, (x, opt.init(x)), batches)
        return jnp.linalg.norm(gradient(x, jnp.arange(1000)))

    @jax.jit
    @jax.vmap
    def norms(b0):
        fixed = optax.sgd(7 / b0)
        falling = optax.sgd(lambda count: 7 / b0 / jnp.sqrt(count + 1))
        return final(adagrad_norm(7.0, b0=b0)), final(fixed), final(falling)

    ours, fixed, falling = norms(starts)
    assert (ours <= 1e-8).all()
    # Not a number, where it overflows on the way.
    assert not (fixed[starts <= 10] < 1e100).any()
    assert not (falling[starts <= 0.1] < 1e100).any()


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="b0 must not be negative, got -1.0"):
        adagrad_norm(b0=-1.0)
