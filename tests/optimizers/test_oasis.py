import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers import oasis


def run(tx, grad, params, num_steps, **extra):
    """Parameters after each step; `extra` is made of functions of the parameters."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grad(params), state, params, **extra)
        params = params + updates
        return (params, state), (params, state.rate)

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=num_steps)[1])(params)


def by_hand(gradient, diagonal, start, num_steps, decay=0.9, floor=1e-3, rate=1e-2):
    """An independent transcription; `diagonal(x)` is what z ⊙ H z is, for every z."""
    d = diagonal(start)
    growth = np.inf
    x, before = start, None
    path, rates = [], []
    for step in range(num_steps):
        if step:
            d = decay * d + (1 - decay) * diagonal(x)
        scale = np.maximum(np.abs(d), floor)
        g = gradient(x)
        if before is not None:
            moved = np.sqrt(np.sum(scale * (x - before[0]) ** 2))
            changed = np.sqrt(np.sum((g - before[1]) ** 2 / scale))
            new = min(np.sqrt(1 + growth) * rate, 0.5 * moved / changed)
            growth, rate = new / rate, new
        before = (x, g)
        x = x - rate * g / scale
        path.append(x)
        rates.append(rate)
    return path, rates


def test_repeats_a_transcription_where_the_hessian_is_diagonal(x64):
    # z ⊙ H z is the diagonal for any signs. One curvature is below the floor, one negative.
    weights = np.array([3.0, 1.0, 1e-4, -0.2])
    start = np.array([0.5, -0.3, 0.2, 0.7])
    path, rates = run(
        oasis(decay=0.9, floor=1e-3, initial_rate=1e-2, num_samples=3),
        lambda x: jnp.asarray(weights) * jnp.sinh(x),
        jnp.asarray(start),
        8,
        obj_fn=lambda x: jnp.sum(jnp.asarray(weights) * jnp.cosh(x)),
    )
    expected, expected_rates = by_hand(
        lambda x: weights * np.sinh(x), lambda x: weights * np.cosh(x), start, 8
    )
    np.testing.assert_allclose(rates, expected_rates, rtol=1e-9)
    np.testing.assert_allclose(path, expected, rtol=1e-9)


def test_the_first_diagonal_is_a_mean_of_samples(x64):
    hessian = np.random.default_rng(0).normal(size=(4, 4))
    hessian = jnp.asarray(hessian + hessian.T)
    tx, x = oasis(num_samples=2_000), jnp.ones(4)
    _, state = jax.jit(lambda x: tx.update(x, tx.init(x), x, hvp_fn=lambda _, v: hessian @ v))(x)
    off = np.asarray(hessian - jnp.diag(jnp.diag(hessian)))
    errors = np.sqrt((off**2).sum(axis=1) / 2_000)
    assert (np.abs(state.diagonal - jnp.diag(hessian)) < 4 * errors).all()
    assert (np.abs(state.diagonal - jnp.diag(hessian)) > 0).all()


def test_on_minibatches_both_gradients_are_of_the_batch_of_the_step():
    tx, x = oasis(initial_rate=0.1), jnp.array([1.0, -2.0])

    @jax.jit
    def both(x):
        extra = {"hvp_fn": lambda params, v: v}
        first, state = tx.update(x, tx.init(x), x, **extra)
        # Another batch adds 3 to the gradient; its curvature is 2.
        updates, new = tx.update(
            2 * (x + first) + 3, state, x + first, grad_fn=lambda p, i: 2 * p + 3, **extra
        )
        return first, updates, new.rate

    first, updates, rate = both(x)
    np.testing.assert_allclose(first, -0.1 * x, rtol=1e-6)
    np.testing.assert_allclose(rate, 0.5 / 2, rtol=1e-6)
    np.testing.assert_allclose(updates, -rate * (2 * (x + first) + 3), rtol=1e-6)


def test_where_nothing_changed_the_rate_stays():
    tx = oasis(initial_rate=0.1)
    path, rates = run(
        tx, jnp.zeros_like, jnp.ones(2), 3, hvp_fn=lambda params, v: jnp.zeros_like(v)
    )
    np.testing.assert_array_equal(path, 1)
    np.testing.assert_allclose(rates, 0.1)


def logistic(seed, exponent):
    """Breast cancer by standardised columns, each times 10^U(−x, x)."""
    from sklearn.datasets import load_breast_cancer

    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    scale = 10 ** np.random.default_rng(seed).uniform(-exponent, exponent, inputs.shape[1])
    signed = jnp.asarray((2.0 * labels - 1)[:, None] * inputs * scale)
    smoothness = np.linalg.eigvalsh(np.asarray(signed.T @ signed))[-1] / (4 * len(inputs))
    return (lambda w: jnp.mean(jax.nn.softplus(-signed @ w))), smoothness


def losses_on(seed, exponent):
    """After 300 steps: ours, with D = 1, gradient descent."""
    loss, smoothness = logistic(seed, exponent)
    start = jnp.zeros(30)

    def last(tx, **extra):
        return float(loss(run(tx, jax.grad(loss), start, 300, **extra)[0][-1]))

    tx = oasis(floor=1e-8)
    ours = last(tx, obj_fn=loss)
    adaptive = last(tx, hvp_fn=lambda params, v: v)
    rate = 1 / smoothness
    descended = jax.jit(
        lambda w: jax.lax.fori_loop(0, 300, lambda _, w: w - rate * jax.grad(loss)(w), w)
    )(start)
    return ours, adaptive, float(loss(descended))


@pytest.mark.slow
def test_badly_scaled_columns_are_fitted_better_without_tuning(x64):
    ours, adaptive, descent = np.mean([losses_on(seed, 3.0) for seed in range(3)], axis=0)
    assert ours <= 0.85 * adaptive
    assert ours <= 0.6 * descent
    # Where the columns are alike there is little to gain.
    ours, adaptive, _ = losses_on(0, 0.0)
    assert ours <= 1.15 * adaptive


def test_bad_settings_and_missing_arguments_are_refused():
    with pytest.raises(ValueError, match="decay must be in"):
        oasis(decay=1.0)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        oasis(num_samples=0)
    tx, x = oasis(), jnp.ones(2)
    with pytest.raises(ValueError, match="got no params"):
        tx.update(x, tx.init(x))
    with pytest.raises(ValueError, match="misses the extra argument obj_fn"):
        tx.update(x, tx.init(x), x)
