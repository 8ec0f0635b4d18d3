import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers._numerics import (
    global_norm,
    moderate,
    norm,
    quotient,
    refuse_decays,
    root,
)


def test_roots_and_quotients_have_derivative_zero_where_it_would_be_infinite(x64):
    x = jnp.array([0.0, 4.0])
    np.testing.assert_array_equal(root(x), [0.0, 2.0])
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(root)))(x), [0.0, 0.25])
    slopes = jax.jit(jax.vmap(jax.grad(quotient, (0, 1)), (None, 0)))(3.0, x)
    np.testing.assert_allclose(slopes, [[0.0, 0.25], [0.0, -3 / 16]], rtol=1e-14)
    assert np.isnan(root(jnp.array(jnp.nan)))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_norms_of_any_size_and_their_derivatives_are_those_of_numpy(size):
    tree = {"a": size * jnp.array([[1.0, -2.0], [3.0, 0.0]]), "b": jnp.array(size)}
    value, slope = jax.jit(jax.value_and_grad(global_norm))(tree)
    unit = np.array([1.0, -2.0, 3.0, 0.0, 1.0])
    np.testing.assert_allclose(value, size * np.linalg.norm(unit), rtol=1e-6)
    expected = unit / np.linalg.norm(unit) if size else np.zeros(5)
    found = np.concatenate([slope["a"].ravel(), slope["b"].ravel()])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    rows = np.asarray(tree["a"], np.float64)
    np.testing.assert_allclose(
        norm(tree["a"], axis=1), np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-6
    )


def test_norms_are_in_float32_at_least_and_pass_on_what_is_not_finite():
    assert global_norm(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
    assert global_norm({}) == 0
    assert np.isnan(global_norm(jnp.array([1.0, jnp.nan])))
    assert np.isinf(global_norm(jnp.array([1.0, jnp.inf])))


def test_moderate_numbers_stay_and_sums_of_squares_of_others_are_finite():
    x = jnp.array([1e16, -3e38, 2.0])
    found = moderate(x)
    np.testing.assert_array_equal(found[::2], x[::2])
    assert np.isfinite(1e5 * jnp.sum(found**2))


def test_decays_that_are_known_are_refused_and_traced_ones_are_not():
    with pytest.raises(ValueError, match=r"rule: b2 must be in \[0, 1\), got 1.0"):
        refuse_decays("rule", b1=0.0, b2=1.0)

    @jax.jit
    def traced(b1):
        refuse_decays("rule", b1=b1)
        return b1

    assert traced(2.0) == 2
