import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers import accelerated_gam, gam

HESSIAN = np.array([[3.0, 1.0, 0.2], [1.0, 2.0, -0.5], [0.2, -0.5, 0.7]])
W = np.array([0.4, -1.1, 0.8])


def quadratic(p, index=0):
    return jax.tree.map(lambda x: jnp.asarray(HESSIAN) @ x, p)


def unit(x):
    return x / np.linalg.norm(x)


def test_on_a_quadratic_it_is_the_closed_form(x64):
    tx = gam(rho=0.3, alpha=0.7)
    g = HESSIAN @ W
    worst = W + 0.3 * unit(HESSIAN @ unit(g))
    expected = g + 0.7 * 0.3 * HESSIAN @ unit(HESSIAN @ worst)
    w = jnp.asarray(W)
    ours, _ = tx.update(quadratic(w), tx.init(w), w, grad_fn=quadratic)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
    given, _ = tx.update(
        quadratic(w),
        tx.init(w),
        w,
        grad_fn=quadratic,
        hvp_fn=lambda p, v: 2 * jnp.asarray(HESSIAN) @ v,
    )
    # The direction of f does not change with the length of the Hessian, that of the penalty does.
    np.testing.assert_allclose(given - g, 2 * (expected - g), rtol=1e-10)


def test_the_penalty_is_the_gradient_of_the_norm_at_the_worst_point(x64):
    def grad_fn(p, index=0):
        return jax.grad(lambda p: jnp.sum(jnp.sin(p)) * jnp.sum(p**3))(p)

    w = jnp.asarray(W)
    tx = gam(rho=0.2, alpha=1.0)
    ours, _ = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)

    def size(p):
        return jnp.linalg.norm(grad_fn(p))

    worst = w + 0.2 * unit(jax.grad(size)(w))
    np.testing.assert_allclose(ours - grad_fn(w), 0.2 * jax.grad(size)(worst), rtol=1e-10)
    # Uphill on the norm, indeed.
    assert size(worst) > size(w)


def test_the_accelerated_form_repeats_a_transcription_with_four_gradients(x64):
    def slope(w):
        return np.cos(w) * np.sum(w**3) + np.sum(np.sin(w)) * 3 * w**2

    calls = []

    def grad_fn(p, index):
        calls.append(index)
        return {
            "x": jnp.cos(p["x"]) * jnp.sum(p["x"] ** 3) + jnp.sum(jnp.sin(p["x"])) * 3 * p["x"] ** 2
        }

    tx = accelerated_gam(rho=0.2, inner_rho=0.05, b1=0.9, b2=-0.5, b3=1.1, gamma=0.2)
    g0 = slope(W)
    g1 = slope(W + 0.05 * unit(g0))
    worst = W + 0.2 * unit(g1 - g0)
    g2 = slope(worst)
    g3 = slope(worst + 0.05 * unit(g2))
    a, p = 0.9 * g1 + 1.1 * g3, g0 + 0.5 * g2
    expected = a - 0.2 * (p - a * (a @ p) / (a @ a))
    w = {"x": jnp.asarray(W)}
    ours, _ = tx.update({"x": jnp.asarray(g0)}, tx.init(w), w, grad_fn=grad_fn)
    np.testing.assert_allclose(ours["x"], expected, rtol=1e-9)
    assert calls == [0, 1, 2]


def test_on_a_linear_loss_nothing_is_sharp(x64):
    slope = jnp.asarray(W)
    for tx, factor in ((gam(), 1), (accelerated_gam(), 2)):
        ours, _ = tx.update(
            slope, tx.init(slope), slope, grad_fn=lambda p, i: jnp.asarray(W) + 0 * p
        )
        np.testing.assert_allclose(ours, factor * W, rtol=1e-12)


@pytest.mark.parametrize("make", [gam, accelerated_gam])
def test_what_is_missing_is_named(make):
    tx = make()
    with pytest.raises(ValueError, match=f"{make.__name__}: update needs grad_fn="):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(ValueError, match=f"{make.__name__}: update needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), grad_fn=lambda p, i: p)


def test_negative_settings_are_refused():
    with pytest.raises(ValueError, match="gam: rho must be finite and at least 0, got -1"):
        gam(rho=-1.0)
    with pytest.raises(ValueError, match="inner_rho must be finite and positive, got 0"):
        accelerated_gam(inner_rho=0.0)
