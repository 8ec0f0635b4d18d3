import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import (
    minimal_polynomial_extrapolation,
    opt_amsgrad,
    scale_by_opt_amsgrad,
    stacked_gradients,
)
from tests.optimizers import golden
from tests.optimizers.digit_problems import TRAIN, digits, mlp_loss


def extrapolated(gradients, ridge):
    """A transcription for the gradients that are there, as rows."""
    if len(gradients) < 3:
        return gradients[-1]
    differences = np.diff(gradients, axis=0)
    products = differences @ differences.T
    matrix = products / np.trace(products) + ridge * np.eye(len(products))
    z = np.linalg.solve(matrix, np.ones(len(products)))
    return z / z.sum() @ gradients[:-1]


def states(predict, gradients, num_gradients=6):
    """Those after each tree of gradients, steps first."""
    opt = scale_by_opt_amsgrad(predict=predict, num_gradients=num_gradients)

    def step(state, grads):
        state = opt.update(grads, state)[1]
        return state, state

    start = opt.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.jit(lambda s, g: jax.lax.scan(step, s, g)[1])(start, gradients)


def by_hand(ridge, b1=0.9, b2=0.99, eps=1e-8, rate=0.05):
    """An independent transcription on the problem of the golden numbers, with both sequences."""
    sizes = {name: np.asarray(p).size for name, p in golden.start().items()}
    w = half = np.concatenate([np.asarray(p).ravel() for p in golden.start().values()])
    index = np.concatenate([1.0 + np.arange(size) for size in sizes.values()])
    theta = m = np.zeros(w.size)
    v = v_max = np.full(w.size, eps)
    seen, path = [], []
    for step in range(golden.STEPS):
        g = np.sin((step + 1) * index) + 0.5 * w
        theta = b1 * theta + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - m) ** 2
        v_max = np.maximum(v_max, v)
        half = half - rate * theta / np.sqrt(v_max)
        seen = [*seen[-5:], g]
        m = extrapolated(np.stack(seen), ridge)
        w = half - rate * (b1 * theta + (1 - b1) * m) / np.sqrt(v_max)
        path.append(w)
    return np.stack(path)


def test_repeats_a_transcription_that_keeps_both_sequences(x64):
    opt = opt_amsgrad(0.05, b2=0.99, predict=minimal_polynomial_extrapolation(ridge=1e-3))
    path = golden.trajectory(opt)
    order = list(golden.start())
    ours = np.concatenate([path[name].reshape(golden.STEPS, -1) for name in order], axis=1)
    np.testing.assert_allclose(ours, by_hand(1e-3), rtol=1e-9, atol=1e-11)


def test_the_limit_of_a_linear_sequence_is_predicted(x64):
    rng = np.random.default_rng(0)
    limit, modes = rng.normal(size=8), rng.normal(size=(3, 8))
    powers = np.array([0.9, -0.5, 0.3]) ** np.arange(9)[:, None]
    gradients = jnp.asarray(limit + powers @ modes)
    tree = {"a": gradients[:, :3], "b": gradients[:, 3:].reshape(9, 5, 1)}
    predicted = states(minimal_polynomial_extrapolation(ridge=0.0), tree).predicted
    found = np.concatenate([predicted["a"], predicted["b"][..., 0]], axis=1)
    np.testing.assert_allclose(found[-1], limit, atol=1e-6)
    # Three gradients have too few differences: one mode remains.
    assert np.abs(found[2] - limit).max() > 1e-2


def test_few_or_equal_gradients_predict_the_last_one():
    gradients = jnp.array([[1.0, 2.0, 0.0], [3.0, 5.0, 0.0], [2.0, 1.0, 0.0], [0.5, 4.0, 0.0]])
    both = jnp.stack([gradients, jnp.ones_like(gradients), 0 * gradients], axis=1)
    predict = minimal_polynomial_extrapolation()
    few, ones, zeros = jax.vmap(lambda g: states(predict, g).predicted, 1)(both)
    np.testing.assert_array_equal(few[:2], gradients[:2])
    assert np.abs(few[2:] - gradients[2:]).max() > 0.1
    np.testing.assert_array_equal(ones, 1.0)
    np.testing.assert_array_equal(zeros, 0.0)


@pytest.mark.compiles
def test_differences_whose_squares_are_no_floats_predict_the_last_one():
    sequence = jnp.array([[0.0, 1.0], [1.0, 0.5], [0.3, 0.2], [0.1, 0.7]])
    huge = 1e16 * jnp.tile(sequence, (1, 400_000)) * jnp.array([-1.0, 1.0, -1.0, 1.0])[:, None]
    for gradients in (1e-25 * sequence, 3 * huge):
        found = states(minimal_polynomial_extrapolation(), gradients).predicted
        limit = float(np.finfo(np.float32).max) ** 0.5 / 1024  # Where gradients are clipped.
        np.testing.assert_allclose(found, jnp.clip(gradients, -limit, limit), rtol=1e-6)


@pytest.mark.compiles
def test_products_and_stacks_are_those_of_the_last_gradients(x64):
    rng = np.random.default_rng(0)
    shapes = {**golden.SHAPES, "scalar": ()}
    gradients = {name: rng.normal(size=(11, *shape)) for name, shape in shapes.items()}
    flat = np.concatenate([g.reshape(11, -1) for g in gradients.values()], axis=1)
    histories = states(lambda history: history.newest, gradients, num_gradients=4).history
    stacks = jax.vmap(stacked_gradients)(histories)
    for count in (1, 3, 4, 6, 11):
        kept = min(count, 4)
        for name, stack in stacks.items():
            expected = gradients[name][count - kept : count]
            np.testing.assert_allclose(stack[count - 1, 4 - kept :], expected, rtol=1e-10)
            np.testing.assert_array_equal(stack[count - 1, : 4 - kept], 0)
        differences = np.zeros((3, flat.shape[1]))
        for t in range(max(1, count - 3), count):
            differences[(t + 1) % 3] = flat[t] - flat[t - 1]
        products = histories.products[count - 1]
        np.testing.assert_allclose(products, differences @ differences.T, rtol=1e-12)


def test_a_perfect_guess_leaves_no_surprise_to_divide_by(x64):
    def known(history):
        return jnp.sin(1.0 + history.count)

    opt = opt_amsgrad(0.1, predict=known)
    state, update = opt.init(jnp.zeros(())), jax.jit(opt.update)
    for count in range(4):
        _, state = update(jnp.sin(1.0 + count), state)
    (inner, _) = state
    # The first gradient came as a surprise, the others did not.
    first = 0.999 * 1e-8 + 0.001 * np.sin(1.0) ** 2
    assert inner.nu == pytest.approx(0.999**3 * first, rel=1e-12)
    assert inner.nu_max == pytest.approx(first, rel=1e-12)


def amsgrad(rate, b1=0.9, b2=0.999, eps=1e-8):
    """AMSGrad as published, without corrections for the start."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        start = jax.tree.map(lambda p: jnp.full_like(p, eps), params)
        return zeros, start, start

    def update(grads, state, params=None):
        m, v, largest = state
        m = optax.tree.update_moment(grads, m, b1, 1)
        v = optax.tree.update_moment(grads, v, b2, 2)
        largest = jax.tree.map(jnp.maximum, largest, v)
        return jax.tree.map(lambda m, v: -rate * m / jnp.sqrt(v), m, largest), (m, v, largest)

    return optax.GradientTransformation(init, update)


def test_softmax_regression_is_ahead_of_amsgrad_at_a_small_rate():
    inputs, labels = (x[:TRAIN] for x in digits())
    inputs, labels = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)
    batches = jnp.asarray(np.random.default_rng(0).integers(0, TRAIN, size=(200, 64)))

    def final(opt, whole):
        def step(carry, rows):
            params, state = carry
            fed = (inputs, labels) if whole else (inputs[rows], labels[rows])
            updates, state = opt.update(jax.grad(mlp_loss)(params, *fed), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = [{"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}]
        (end, _), _ = jax.lax.scan(step, (params, opt.init(params)), batches)
        return mlp_loss(end, inputs, labels)

    @jax.jit
    def finals():
        opts = opt_amsgrad(1e-3), amsgrad(1e-3)
        return [[final(opt, whole) for opt in opts] for whole in (True, False)]

    (ours, theirs), (ours_batched, theirs_batched) = finals()
    assert ours <= 0.7 * theirs
    assert ours_batched <= 0.8 * theirs_batched


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="num_gradients must be at least 2, got 1"):
        opt_amsgrad(0.1, num_gradients=1)
    with pytest.raises(ValueError, match="eps must not be negative"):
        opt_amsgrad(0.1, eps=-1.0)
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\)"):
        opt_amsgrad(0.1, b2=1.5)
    with pytest.raises(ValueError, match="ridge must not be negative"):
        minimal_polynomial_extrapolation(ridge=-1.0)
