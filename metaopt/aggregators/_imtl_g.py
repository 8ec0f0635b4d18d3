"""IMTL-G: the combination of gradients with the same projection on each of them.

    A(J) = Jᵀ w,    w = v / Σ v,    v = G⁺ d,    dᵢ = |gᵢ|

so that gᵢ·A(J) / |gᵢ| is one number for all i where the gradients are linearly independent. Liu et
al. 2021 (ICLR), in the form with a pseudo-inverse of Quinton and Rey 2024, arXiv:2406.16232, which
also accepts dependent gradients. Weights may be negative.
"""

import jax.numpy as jnp

from metaopt.aggregators._aggregator import Aggregator, by_gramian
from metaopt.aggregators._gramian import normalised
from metaopt.core import checked

# Sums of v, for a Gramian of trace 1, that count as zero.
_TINY = 1e-12


@checked
def imtl_g() -> Aggregator:
    """Equal progress, in the length of each gradient's own direction.

    Returns:
        An aggregator; its weights are zero where v sums to zero. Derivatives are those of a
        pseudo-inverse whose rank does not change.
    """

    def weights(gramian, key=None):
        del key
        scaled = normalised(gramian)
        squares = jnp.diagonal(scaled)
        positive = squares > 0
        lengths = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
        v = jnp.matmul(jnp.linalg.pinv(scaled, hermitian=True), lengths, precision="highest")
        total = jnp.sum(v)
        some = jnp.abs(total) > _TINY
        return jnp.where(some, v, 0.0) / jnp.where(some, total, 1.0)

    return by_gramian(weights)
