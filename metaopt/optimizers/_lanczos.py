"""Extreme eigenpairs of a symmetric matrix that is only known by its products with vectors.

    β_{i+1} q_{i+1} = A q_i − α_i q_i − β_i q_{i−1},    T = tridiag(β, α, β) = U Λ Uᵀ,    V = Uᵀ Q

Lanczos 1950 (J. Res. Natl. Bur. Stand. 45); orthogonality is restored twice in every step, against
all vectors (Parlett 1980, *The Symmetric Eigenvalue Problem*, §13). Where the recurrence ends
early, on having found an invariant subspace, it goes on from a random vector.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import checked


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs, constants for derivatives.

    Attributes:
        values: the smallest ones, then the largest ones, both ascending; NaN if a product was not
            finite.
        vectors: in the same order, one per row, orthonormal.
    """

    values: Float[Array, " pairs"]
    vectors: Float[Array, "pairs n"]


@checked
def lanczos_extremes(
    hvp_fn: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    dimension: int,
    key: PRNGKeyArray,
    *,
    num_largest: int = 5,
    num_smallest: int = 0,
    order: int | None = None,
) -> Eigenpairs:
    """The largest and the smallest eigenvalues, with their vectors.

    Derivatives do not pass: those of eigenvectors are infinite where eigenvalues coincide.

    Args:
        hvp_fn: `v -> A v` for a symmetric A, such as a Hessian-vector product; v is in the widest
            precision that is switched on, float64 or float32.
        dimension: n, entries of v. Static.
        key: of the random vectors.
        num_largest: how many of the largest eigenvalues. Static.
        num_smallest: how many of the smallest (most negative) ones. Static.
        order: products with A; 4 for each pair wanted by default, and never more than n, for which
            the pairs are exact. Static.

    Returns:
        The pairs.

    Raises:
        ValueError: if no pair or more pairs than n are wanted, or `order` is below their number.
    """
    num_pairs = num_largest + num_smallest
    if min(num_largest, num_smallest) < 0 or not 1 <= num_pairs <= dimension:
        raise ValueError(
            f"lanczos_extremes: num_largest={num_largest} and num_smallest={num_smallest} must not "
            f"be negative, and 1 to dimension={dimension} in all."
        )
    if order is not None and order < num_pairs:
        raise ValueError(
            f"lanczos_extremes: order={order} is below the number of pairs, {num_pairs}; use 4 for "
            "each pair."
        )
    order = min(4 * num_pairs if order is None else order, dimension)
    basis, tridiagonal = _recurrence(hvp_fn, dimension, order, key)
    finite = jnp.isfinite(tridiagonal).all()
    values, rotation = jnp.linalg.eigh(jnp.where(finite, tridiagonal, jnp.eye(order)))
    wanted = jnp.array([*range(num_smallest), *range(order - num_largest, order)])
    values = jnp.where(finite, values[wanted], jnp.nan)
    return Eigenpairs(*jax.lax.stop_gradient((values, rotation[:, wanted].T @ basis)))


def _recurrence(hvp_fn, dimension, order, key):
    """Orthonormal vectors q as rows, and T."""
    wide = jnp.result_type(float)
    smallest = jnp.finfo(wide).tiny
    key_first, key_next = jax.random.split(key)

    def unit(v):
        return v / jnp.maximum(jnp.linalg.norm(v), smallest)

    def step(carry, index):
        basis, size = carry
        q = basis[index]
        product = hvp_fn(q).astype(wide)
        alpha = q @ product

        def orthogonal(v):
            for _ in range(2):  # Once leaves errors of the order of what was taken away.
                v = v - basis.T @ (basis @ v)  # Rows to come are zero.
            return v

        rest = orthogonal(product)
        beta = jnp.linalg.norm(rest)
        size = jnp.maximum(size, jnp.abs(alpha) + beta)
        ends = beta <= 10 * dimension * jnp.finfo(wide).eps * size
        fresh = jax.random.normal(jax.random.fold_in(key_next, index), (dimension,), wide)
        following = jnp.where(ends, unit(orthogonal(unit(fresh))), unit(rest))
        basis = basis.at[index + 1].set(following, mode="drop")
        return (basis, size), (alpha, jnp.where(ends, 0, beta))

    first = unit(jax.random.normal(key_first, (dimension,), wide))
    basis = jnp.zeros((order, dimension), wide).at[0].set(first)
    carry, (alphas, betas) = jax.lax.scan(step, (basis, jnp.zeros((), wide)), jnp.arange(order))
    off = jnp.diag(betas[:-1], 1)
    return carry[0], jnp.diag(alphas) + off + off.T
