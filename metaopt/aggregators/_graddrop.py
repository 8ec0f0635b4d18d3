"""GradDrop: in every coordinate one sign is drawn, and gradients of the other one are dropped.

    P = ½ (1 + Σᵢ gᵢ / Σᵢ |gᵢ|),    U ~ uniform(0, 1)
    A(J) = Σᵢ (lᵢ + (1 - lᵢ) Mᵢ) gᵢ,    Mᵢ = 1[f(P) > U] 1[gᵢ > 0] + 1[f(P) < U] 1[gᵢ < 0]

Chen et al. 2020, arXiv:2010.06808, algorithm 1, lines 10 to 15. The purity P is 1 where all
gradients are positive and 0 where all are negative, so that without conflict nothing is dropped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.aggregators._aggregator import Aggregator, num_rows, wide
from metaopt.core import checked


@checked
def graddrop(
    *,
    purity: Callable[[Float[Array, "..."]], Float[Array, "..."]] = lambda p: p,
    leak: Float[Array, " m"] | None = None,
) -> Aggregator:
    """The sum of gradients of one sign, which is drawn for every coordinate.

    Args:
        purity: f, increasing from [0, 1] to itself. Static.
        leak: l, the part of each gradient that is never dropped, in [0, 1]; None: 0. Traced.

    Returns:
        An aggregator that needs a key. The signs that were drawn count as constants: derivatives
        pass through the gradients that stayed.

    Raises:
        ValueError: if `leak` is no vector.
    """
    if leak is not None and jnp.ndim(leak) != 1:
        raise ValueError(
            "graddrop: leak must be a vector of one number per objective, got the shape "
            f"{jnp.shape(leak)}."
        )

    def aggregate(jacobian, key=None):
        count = num_rows(jacobian)
        if key is None:
            raise ValueError(
                "graddrop: aggregate needs a key, which signs are drawn from; pass "
                "aggregate(jacobian, key)."
            )
        if leak is not None and jnp.shape(leak) != (count,):
            raise ValueError(
                f"graddrop: leak has the shape {jnp.shape(leak)} for {count} objectives; give one "
                "number for each."
            )
        leaves, structure = jax.tree.flatten(jacobian)
        kept = []
        for x, key_leaf in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
            rows = wide(x)
            draws = jax.random.uniform(key_leaf, rows.shape[1:], rows.dtype)
            kept.append(drop(rows, draws, purity, leak).astype(x.dtype))
        return jax.tree.unflatten(structure, kept)

    return Aggregator(aggregate, None)


def drop(rows, draws, purity, leak):
    """The sum over the rows of one leaf, with the draws U of its coordinates."""
    # Neither sum overflows: entries are at most 1.
    largest = jnp.max(jnp.abs(rows), axis=0, keepdims=True)
    scaled = jax.lax.stop_gradient(rows / jnp.where(largest > 0, largest, 1.0))
    total = jnp.sum(jnp.abs(scaled), axis=0)
    ratio = jnp.sum(scaled, axis=0) / jnp.where(total > 0, total, 1.0)
    p = purity(0.5 * (1 + ratio))[None]
    stays = ((p > draws[None]) & (rows > 0)) | ((p < draws[None]) & (rows < 0))
    mask = jnp.where(stays, jnp.ones((), rows.dtype), 0.0)
    if leak is not None:
        part = jnp.asarray(leak, rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))
        mask = part + (1 - part) * mask
    return jnp.sum(mask * rows, axis=0)
