import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import sania
from tests.helpers import central_differences
from tests.optimizers.cancer import breast_cancer, logistic_loss


def run(tx, gradients, values):
    """All updates for gradients and losses with a step axis first."""

    def step(state, fed):
        gradient, value = fed
        update, state = tx.update(gradient, state, value=value)
        return state, update

    first = jax.tree.map(lambda g: g[0], gradients)
    return jax.jit(lambda *fed: jax.lax.scan(step, tx.init(first), fed)[1])(gradients, values)


@pytest.mark.parametrize("kind", ["adagrad_sqr", "adam_sqr", "adagrad", "adam"])
def test_repeats_a_transcription(x64, kind):
    rng = np.random.default_rng(0)
    gradients, values = rng.normal(size=(8, 5)), rng.uniform(0.2, 2.5, size=8)
    f_star, b2 = 0.1, 0.9
    updates = run(sania(kind, f_star=f_star, b2=b2), jnp.asarray(gradients), jnp.asarray(values))
    total, branches = np.zeros(5), set()
    for t, (g, value) in enumerate(zip(gradients, values, strict=True), start=1):
        if kind.startswith("adagrad"):
            total = total + g**2
            b = total
        else:
            total = b2 * total + (1 - b2) * g**2
            b = total / (1 - b2**t)
        b = b if kind.endswith("sqr") else np.sqrt(b)
        s = g / b
        q, gap = g @ s, value - f_star
        branches.add(2 * gap <= q)
        size = 1 - np.sqrt(1 - 2 * gap / q) if 2 * gap <= q else 1.0
        np.testing.assert_allclose(updates[t - 1], -size * s, rtol=1e-10)
    assert branches == {True, False}


def test_a_step_reaches_the_least_loss_where_the_preconditioner_is_the_hessian(x64):
    curvatures = jnp.array([1.0, 4.0, 0.3])
    exact = optax.stateless(lambda updates, params: curvatures)

    def loss(w):
        return 0.5 * jnp.sum(curvatures * w**2)

    w = jnp.array([1.0, -2.0, 0.5])
    for f_star in (0.0, 0.5):
        tx = sania(exact, f_star=f_star)
        update, _ = tx.update(jax.grad(loss)(w), tx.init(w), w, value=loss(w))
        np.testing.assert_allclose(loss(w + update), f_star, atol=1e-12)


def losses_along(kind, scales, num_steps=300):
    """The loss of all rows during training on batches, inputs multiplied by `scales`."""
    inputs, labels = (jnp.asarray(x) for x in breast_cancer())
    inputs = inputs * scales[None]
    rng = np.random.default_rng(0)
    batches = np.stack([rng.choice(len(labels), 64, replace=False) for _ in range(num_steps)])
    tx = sania(kind)

    def step(carry, rows):
        w, state = carry
        batch = (inputs[rows], labels[rows])
        value, gradient = jax.value_and_grad(logistic_loss)(w, batch)
        update, state = tx.update(gradient, state, w, value=value)
        w = optax.apply_updates(w, update)
        return (w, state), logistic_loss(w, (inputs, labels))

    w = jnp.zeros(inputs.shape[1])
    return jax.lax.scan(step, (w, tx.init(w)), jnp.asarray(batches))[1]


@pytest.mark.parametrize("kind", ["adagrad_sqr", "adam_sqr", "adagrad"])
def test_losses_do_not_depend_on_scales_of_inputs_unless_roots_are_taken(x64, kind):
    scales = np.exp(np.random.default_rng(1).uniform(-4, 4, size=30))
    both = jnp.stack([jnp.ones(30), jnp.asarray(scales)])
    plain, scaled = jax.jit(jax.vmap(lambda s: losses_along(kind, s)))(both)
    difference = float(jnp.max(jnp.abs(plain - scaled)))
    if kind == "adagrad":
        assert difference >= 1e-2
    else:
        assert difference <= 1e-10
        assert plain[-1] < 0.5 * plain[0]


def test_dead_entries_and_fulfilled_losses_do_not_move():
    tx = sania("adagrad_sqr")
    state = tx.init(jnp.ones(2))
    update, state = tx.update(jnp.array([1.0, 0.0]), state, value=jnp.array(0.1))
    assert update[1] == 0
    assert update[0] < 0
    update, state = tx.update(jnp.array([1.0, 1.0]), state, value=jnp.array(0.0))
    assert np.all(np.asarray(update) == 0)
    # Below f*, which is 0: no way back.
    update, _ = tx.update(jnp.array([1.0, 1.0]), state, value=jnp.array(-1.0))
    assert np.all(np.asarray(update) == 0)


def test_the_derivative_with_respect_to_the_least_loss(x64):
    def end(f_star):
        tx = sania("adam_sqr", f_star=f_star)
        w = jnp.array([1.0, -2.0])
        state = tx.init(w)
        for _ in range(3):
            value, gradient = jax.value_and_grad(lambda w: 0.5 * jnp.sum(w**2) + 0.4)(w)
            update, state = tx.update(gradient, state, w, value=value)
            w = w + update
        return jnp.sum(w**3)

    slope = jax.jit(jax.grad(end))(0.1)
    np.testing.assert_allclose(slope, central_differences(end, jnp.array(0.1))[0], rtol=1e-6)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="preconditioner='sqr' is unknown"):
        sania("sqr")
    with pytest.raises(ValueError, match="sania: b2 must be in"):
        sania("adam_sqr", b2=1.0)
    with pytest.raises(ValueError, match="sania: eps must not be negative"):
        sania("adam_sqr", eps=-1.0)
    tx = sania("adam_sqr")
    with pytest.raises(ValueError, match="sania: update needs value"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
