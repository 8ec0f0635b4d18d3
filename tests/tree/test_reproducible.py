import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tree


def numbers(count: int, dtype=np.float32) -> np.ndarray:
    """Columns of very different size, whose entries spread over six orders of magnitude."""
    rng = np.random.default_rng(count)
    columns = 10.0 ** rng.uniform(-15, 15, size=(1, 200))
    rows = 10.0 ** rng.uniform(-6, 0, size=(count, 1))
    return (rng.normal(size=(count, 200)) * columns * rows).astype(dtype)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 1000])
def test_any_order_gives_the_same_bits_where_a_plain_mean_does_not(count):
    x, rng = numbers(count), np.random.default_rng(0)
    mean, plain = jax.jit(tree.reproducible_mean), jax.jit(lambda x: jnp.mean(x, axis=0))
    orders = [rng.permutation(count) for _ in range(3)]
    for order in orders:
        np.testing.assert_array_equal(mean(x[order]), mean(x))
    if count > 2:
        assert any(np.any(plain(x[order]) != plain(x)) for order in orders)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 1000])
def test_agrees_with_exact_sums_to_the_rounding_of_the_largest_entry(count):
    x = numbers(count)
    exact = [math.fsum(column.astype(float)) / count for column in x.T]
    error = np.abs(np.asarray(tree.reproducible_mean(jnp.asarray(x)), float) - exact)
    assert np.all(error <= np.finfo(np.float32).eps * np.abs(x).max(axis=0))


def test_double_precision_is_kept(x64):
    x = numbers(16, np.float64)
    exact = np.array([math.fsum(column) / 16 for column in x.T])
    mean = tree.reproducible_mean(jnp.asarray(x))
    assert np.all(np.abs(mean - exact) <= np.finfo(float).eps * np.abs(x).max(axis=0))


def test_entries_beyond_its_range_are_plain_means():
    x = jnp.array([[0.0, 3e38, jnp.nan, jnp.inf], [0.0, -3e38, 1.0, 1.0]])
    np.testing.assert_array_equal(tree.reproducible_mean(x), jnp.mean(x, axis=0))


def test_bfloat16_is_averaged_in_float32():
    x = jnp.array([256.0, 1.0, 1.0, 1.0], jnp.bfloat16)
    mean = tree.reproducible_mean(x)
    assert mean.dtype == jnp.bfloat16
    assert mean == jnp.asarray(259 / 4, jnp.bfloat16)


def test_its_derivative_is_that_of_a_mean(x64):
    x = jnp.array([[1.0, -2.0], [3.0, 0.0], [4.0, 1e3]])
    weights = jnp.array([2.0, -1.0])
    grad = jax.grad(lambda x: weights @ tree.reproducible_mean(x))(x)
    np.testing.assert_allclose(grad, jnp.tile(weights / 3, (3, 1)), rtol=1e-15)


def test_an_empty_axis_is_refused():
    with pytest.raises(ValueError, match="reproducible_mean: x has shape"):
        tree.reproducible_mean(jnp.zeros((0, 3)))
