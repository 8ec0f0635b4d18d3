"""Aligned-MTL: the gradients' principal components, all of one length.

    A(J) = Jᵀ B u,    B = σ V Σ⁻¹ Vᵀ,    G = V Σ² Vᵀ

on the range of G, with σ the smallest singular value. The transformed gradients Bᵀ J are orthogonal
and equally long, so that none dominates and none conflicts. Senushkin et al. 2023 (CVPR),
arXiv:2305.19000, algorithm 1; the other scales follow the authors' code and that of Quinton and Rey
2024, arXiv:2406.16232.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.aggregators._aggregator import Aggregator, by_gramian
from metaopt.aggregators._gramian import check_preference, normalised, preference_of, product
from metaopt.core import checked


@checked
def aligned_mtl(
    *,
    preference: Float[Array, " m"] | None = None,
    scale: Literal["min", "median", "rmse"] = "min",
) -> Aggregator:
    """A combination of gradients after they were made orthogonal.

    Args:
        preference: u, how much each objective counts; None: 1/m. Traced.
        scale: σ² is the smallest of the positive eigenvalues of G, their lower median or their
            mean. Static.

    Returns:
        An aggregator. First derivatives are exact, also where eigenvalues coincide, as long as the
        rank does not change; eigenvectors are not differentiated twice.

    Raises:
        ValueError: if `preference` is no vector.
    """
    check_preference(preference, "aligned_mtl")

    def weights(gramian, key=None):
        del key
        u = preference_of(preference, gramian, "aligned_mtl")
        return jnp.where(jnp.trace(gramian) > 0, product(_balance(gramian, scale), u), u)

    return by_gramian(weights)


def _balance(gramian, scale):
    """B; it does not depend on the scale of G, which is kept at 1 for the sake of derivatives."""
    matrix = normalised(gramian)
    fixed = jax.lax.stop_gradient(matrix)
    values, vectors = jnp.linalg.eigh(fixed)
    eps = float(jnp.finfo(values.dtype).eps)
    inside = (values > len(values) * eps * jnp.max(values)) & (values > 0)
    inverse = jnp.where(inside, jax.lax.rsqrt(jnp.where(inside, values, 1.0)), 0.0)
    # Nil, but its derivative is that of G in the basis of eigenvectors.
    change = jnp.linalg.multi_dot([vectors.T, matrix - fixed, vectors], precision="highest")
    roots = jnp.diag(inverse) + _slopes(inverse, inside) * change
    sigma2 = _scale(values + jnp.diagonal(change), inside, scale)
    inverse_root = jnp.linalg.multi_dot([vectors, roots, vectors.T], precision="highest")
    return jnp.sqrt(sigma2) * inverse_root


def _slopes(inverse, inside):
    """Divided differences of λ^(-1/2), which is 0 outside the range."""
    total = inverse[:, None] + inverse[None]
    both = inside[:, None] & inside[None]
    within = -((inverse[:, None] * inverse[None]) ** 2) / jnp.where(both, total, 1.0)
    return jnp.where(both, within, total**3)


def _scale(values, inside, scale):
    """One eigenvalue for all; 1 if there is none."""
    rank = jnp.sum(inside)
    first = len(values) - rank
    if scale == "rmse":
        found = jnp.sum(jnp.where(inside, values, 0.0)) / jnp.maximum(rank, 1)
    else:
        index = first + (rank - 1) // 2 if scale == "median" else first
        found = values[jnp.clip(index, 0, len(values) - 1)]
    return jnp.where(rank > 0, found, 1.0)
