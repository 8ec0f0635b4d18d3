"""One optax transformation in the training loops of four frameworks, in place of Adam.

Same parameters, same batches: the loops differ in how they hold parameters, and in nothing that an
optimizer could see but the layout of Equinox's weights, [out, in].
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from metaopt.learned import celo2, celo2_mixed, mup, mup_scale

NUM_STEPS = 20
SIZES = (4, 7, 3)


def follows_momentum():
    """Weights by hand: the direction is m/√r with decays 0.9 and 0.95, at unit size."""
    theta = jax.tree.map(jnp.zeros_like, celo2().init(jax.random.key(0)))
    # As relu(x) - relu(-x), twice, with x the feature of the first momentum.
    signs = jnp.array([1.0, -1.0])
    theta["linear_0"]["w"] = theta["linear_0"]["w"].at[7, :2].set(signs)
    theta["linear_1"]["w"] = theta["linear_1"]["w"].at[:2, :2].set(jnp.eye(2))
    theta["linear_2"]["w"] = theta["linear_2"]["w"].at[:2, 0].set(signs)
    return theta


def optimizers(name):
    """Every loop below takes any of these: the one line that changes."""
    schedule = optax.cosine_decay_schedule(0.05, NUM_STEPS)
    if name == "adam":
        return optax.adam(schedule)
    if name == "celo2":
        return celo2(schedule).optimizer(follows_momentum())
    # Names and layouts differ between the frameworks; by rank, all agree.
    learned = celo2_mixed(schedule, vector_mult=2.0, orthogonalise=False)
    learned = mup(
        learned,
        lambda params: mup_scale(params, lambda path, p: "bias" if p.ndim < 2 else 2),
    )
    return learned.optimizer(follows_momentum())


def problem():
    """Parameters `[(w, b), ...]` with w of shape [in, out], and a batch per step."""
    rng = np.random.default_rng(0)
    params = [
        (
            jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5),
            jnp.asarray(0.1 * np.ones(shape[1])),
        )
        for shape in zip(SIZES[:-1], SIZES[1:], strict=True)
    ]
    inputs = rng.normal(size=(NUM_STEPS, 16, SIZES[0]))
    labels = np.argmax(inputs[..., : SIZES[-1]], axis=-1)
    return params, jnp.asarray(inputs), jnp.asarray(labels)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def plain(tx):
    params, inputs, labels = problem()
    state, losses = tx.init(params), []

    def loss_fn(params, inputs, labels):
        (w0, b0), (w1, b1) = params
        hidden = jax.nn.relu(inputs @ w0 + b0[None])
        return cross_entropy(hidden @ w1 + b1[None], labels)

    @jax.jit
    def train_step(params, state, inputs, labels):
        loss, grads = jax.value_and_grad(loss_fn)(params, inputs, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for batch in zip(inputs, labels, strict=True):
        params, state, loss = train_step(params, state, *batch)
        losses.append(float(loss))
    return losses, [x for layer in params for x in layer]


def flax_linen(tx):
    start, inputs, labels = problem()
    model = linen.Sequential([linen.Dense(SIZES[1]), linen.relu, linen.Dense(SIZES[2])])
    layers = {f"layers_{2 * i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(start)}
    params = {"params": layers}
    state, losses = tx.init(params), []

    @jax.jit
    def train_step(params, state, inputs, labels):
        def loss_fn(params):
            return cross_entropy(model.apply(params, inputs), labels)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for batch in zip(inputs, labels, strict=True):
        params, state, loss = train_step(params, state, *batch)
        losses.append(float(loss))
    return losses, [layers[k] for layers in params["params"].values() for k in ("kernel", "bias")]


def flax_nnx(tx):
    start, inputs, labels = problem()
    first, second = (nnx.Linear(*w.shape, rngs=nnx.Rngs(0), param_dtype=w.dtype) for w, _ in start)
    for layer, (w, b) in zip((first, second), start, strict=True):
        layer.kernel[...], layer.bias[...] = w, b
    model = nnx.Sequential(first, nnx.relu, second)
    optimizer, losses = nnx.Optimizer(model, tx, wrt=nnx.Param), []

    @nnx.jit
    def train_step(model, optimizer, inputs, labels):
        loss, grads = nnx.value_and_grad(lambda m: cross_entropy(m(inputs), labels))(model)
        optimizer.update(model, grads)
        return loss

    for batch in zip(inputs, labels, strict=True):
        losses.append(float(train_step(model, optimizer, *batch)))
    return losses, [x[...] for layer in (first, second) for x in (layer.kernel, layer.bias)]


def equinox(tx):
    start, inputs, labels = problem()
    model = eqx.nn.MLP(SIZES[0], SIZES[2], SIZES[1], depth=1, key=jax.random.key(0))
    model = eqx.tree_at(
        lambda m: [x for layer in m.layers for x in (layer.weight, layer.bias)],
        model,
        [x for w, b in start for x in (w.T, b)],
    )
    state, losses = tx.init(eqx.filter(model, eqx.is_inexact_array)), []

    @eqx.filter_jit
    def train_step(model, state, inputs, labels):
        loss, grads = eqx.filter_value_and_grad(
            lambda m: cross_entropy(jax.vmap(m)(inputs), labels)
        )(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    for batch in zip(inputs, labels, strict=True):
        model, state, loss = train_step(model, state, *batch)
        losses.append(float(loss))
    return losses, [x for layer in model.layers for x in (layer.weight.T, layer.bias)]


@functools.cache
def expected(name):
    return plain(optimizers(name))


@pytest.mark.parametrize("loop", [flax_linen, flax_nnx, equinox])
@pytest.mark.parametrize(
    "name",
    ["celo2", pytest.param("mixed", marks=pytest.mark.slow),
     pytest.param("adam", marks=pytest.mark.slow)],
)  # fmt: skip
def test_every_loop_trains_alike(x64, name, loop):
    losses, params = expected(name)
    actual_losses, actual_params = loop(optimizers(name))
    np.testing.assert_allclose(actual_losses, losses, rtol=1e-6)
    for actual, value in zip(actual_params, params, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-6, atol=1e-9)


def test_the_loss_falls_and_the_rule_is_what_the_weights_say(x64):
    losses, params = expected("celo2")
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    # The same steps by NumPy, from gradients of the plain loss.
    values, inputs, labels = problem()
    values = [x for layer in values for x in layer]
    moments = [(0.0, 0.0)] * len(values)

    @jax.jit
    def grad(values, inputs, labels):
        def loss_fn(values):
            w0, b0, w1, b1 = values
            hidden = jax.nn.relu(inputs @ w0 + b0[None])
            return cross_entropy(hidden @ w1 + b1[None], labels)

        return jax.grad(loss_fn)(values)

    for t in range(NUM_STEPS):
        rate = 0.05 * 0.5 * (1 + np.cos(np.pi * t / NUM_STEPS))
        grads = map(np.asarray, grad(values, inputs[t], labels[t]))
        moments = [
            (0.9 * m + 0.1 * g, 0.95 * r + 0.05 * g**2)
            for (m, r), g in zip(moments, grads, strict=True)
        ]
        directions = [m / np.sqrt(r + 1e-8) for m, r in moments]
        values = [
            p - rate * y / np.sqrt(np.mean(y**2)) for p, y in zip(values, directions, strict=True)
        ]
    for actual, value in zip(params, values, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-5)
