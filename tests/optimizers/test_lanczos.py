import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers import lanczos_extremes


def symmetric(values, seed=0):
    """A matrix with these eigenvalues."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    return (basis * np.asarray(values)) @ basis.T


def pairs_of(matrix, **settings):
    def find(matrix):
        return lanczos_extremes(lambda v: matrix @ v, len(matrix), jax.random.key(0), **settings)

    return jax.jit(find)(jnp.asarray(matrix))


def test_the_largest_eigenvalues_are_those_of_a_dense_decomposition(x64):
    matrix = symmetric(1e-3 * 1.12 ** np.arange(200))
    found = pairs_of(matrix, num_largest=5, order=40)
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(found.values, values[-5:], rtol=1e-6)
    cosines = np.abs(np.sum(np.asarray(found.vectors) * vectors[:, -5:].T, axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_with_as_many_products_as_dimensions_both_ends_are_exact(x64):
    values = np.linspace(-3, 5, 12) ** 3
    found = pairs_of(symmetric(values), num_largest=2, num_smallest=3, order=12)
    np.testing.assert_allclose(found.values, [*values[:3], *values[-2:]], rtol=1e-10)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(5), atol=1e-12)


def test_repeated_eigenvalues_are_found_although_the_recurrence_ends_early(x64):
    matrix = symmetric([-2.0, -2.0, -1.0, -1.0, -1.0, 3.0, 3.0, 3.0])
    found = pairs_of(matrix, num_largest=4, num_smallest=2)
    np.testing.assert_allclose(found.values, [-2, -2, -1, 3, 3, 3], rtol=1e-10)
    vectors = np.asarray(found.vectors).T
    residual = matrix @ vectors - vectors * np.asarray(found.values)
    np.testing.assert_allclose(residual, 0, atol=1e-10)


def test_in_single_precision_the_vectors_are_orthonormal():
    found = pairs_of(symmetric(1e-3 * 1.2 ** np.arange(100)).astype(np.float32), num_largest=10)
    gram = np.asarray(found.vectors @ found.vectors.T)
    np.testing.assert_allclose(gram, np.eye(10), atol=1e-4)


def test_of_zeros_it_finds_zeros_and_of_nans_nans():
    assert (pairs_of(jnp.zeros((4, 4)), num_largest=2).values == 0).all()
    assert np.isnan(pairs_of(jnp.full((4, 4), jnp.nan), num_largest=2).values).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_largest": 0}, "must not be negative"),
        ({"num_largest": 4, "num_smallest": 1}, "1 to dimension=4"),
        ({"num_largest": 3, "order": 2}, "order=2 is below"),
    ],
)
def test_impossible_numbers_of_pairs_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lanczos_extremes(lambda v: v, 4, jax.random.key(0), **settings)
