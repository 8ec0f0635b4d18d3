import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers._matrix_roots import inverse_root, stacked_inverse_roots


def factor(size, condition, seed=0):
    """A matrix of that condition, with its inverse roots by an eigendecomposition."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    values = np.geomspace(1 / condition, 1, size)
    return (basis * values) @ basis.T, lambda power: (basis * values**-power) @ basis.T


@pytest.mark.parametrize("power", [1.0, 0.5, 0.25, 1 / 6])
def test_it_is_the_power_of_the_eigenvalues(x64, power):
    matrix, root = factor(6, 1e4)
    found = jax.jit(lambda m: inverse_root(m, power, 0.0))(jnp.asarray(matrix))
    np.testing.assert_allclose(found, root(power), atol=1e-10 * np.abs(root(power)).max())


def test_in_single_precision_the_power_of_the_root_is_the_inverse():
    matrix, _ = factor(8, 1e3)
    found = inverse_root(jnp.asarray(matrix, jnp.float32), 0.25, 0.0)
    inverse = np.linalg.matrix_power(np.asarray(found, np.float64), 4)
    # Rounding errors of eight products, magnified by the condition.
    atol = 8 * 1e3 * np.finfo(np.float32).eps
    np.testing.assert_allclose(inverse @ matrix, np.eye(8), atol=atol)


def test_unused_rows_change_nothing_for_the_others(x64):
    matrix, _ = factor(4, 1e5)
    filled = np.zeros((6, 6))
    filled[:4, :4] = matrix
    unused = jnp.arange(6) >= 4
    found = jax.jit(lambda m: inverse_root(m, 0.5, 0.0, unused=unused))(jnp.asarray(filled))
    np.testing.assert_allclose(found[:4, :4], inverse_root(jnp.asarray(matrix), 0.5, 0.0))
    np.testing.assert_array_equal(found[:4, 4:], 0)
    assert np.isfinite(found).all()


def test_stacks_have_the_roots_of_their_matrices(x64):
    stacks = [np.stack([factor(3, 10.0**c, seed=c)[0] for c in cs]) for cs in ((1, 2), (3, 4, 5))]
    roots = jax.jit(
        lambda stacks: stacked_inverse_roots(
            stacks, [jnp.zeros(s.shape[:2], bool) for s in stacks], 0.25, 1e-9
        )
    )([jnp.asarray(s) for s in stacks])
    assert [len(r) for r in roots] == [2, 3]
    for stack, root in zip(stacks, roots, strict=True):
        for matrix, one in zip(stack, root, strict=True):
            expected = inverse_root(jnp.asarray(matrix), 0.25, 1e-9)
            np.testing.assert_allclose(one, expected, rtol=1e-9, atol=1e-10)
