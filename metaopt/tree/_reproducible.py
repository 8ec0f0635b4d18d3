"""A mean whose bits do not depend on the order of summation.

Floating-point sums depend on their order, and the order on the number of devices: one run on one
and on eight devices drifts apart. Here every number is first split at a grid that is common to all
of the axis and so coarse that sums of grid points are exact in any order:

    M = 3/2 · 2^p,    2^p ≥ n · max|x|,    q = (x + M) − M,    Σq exact

and once more for what is left, x − q. The two exact sums carry about 2 · 24 − 2 log₂ n bits below
2^p in float32, more than a plain sum keeps. Demmel and Nguyen 2013, Fast Reproducible
Floating-Point Summation (ARITH), doi:10.1109/ARITH.2013.9.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reproducible_mean(x: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """The mean over the first axis, the same bits for every order and grouping of the addends.

    So a sharded axis gives the same mean on any number of devices, as long as its entries are the
    same. Costs a maximum and two sums, each of which is a collective where the axis is sharded.

    Args:
        x: float32 or float64; narrower types are averaged in float32. Traced, differentiable as
            any mean.

    Returns:
        The mean in the dtype of `x`. Entries with a NaN or infinity, or within a factor of 4n of
        the largest number, are plain means.

    Raises:
        ValueError: if the axis is empty.
    """
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(
            f"reproducible_mean: x has shape {x.shape}; its first axis is averaged and needs "
            "at least one entry."
        )
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    n, limits = x.shape[0], jnp.finfo(wide.dtype)
    fixed = jax.lax.stop_gradient(wide)
    largest = jnp.max(jnp.abs(fixed), axis=0)
    fits = largest < limits.max / (4 * n)  # False for NaN.
    _, exponent = jnp.frexp(n * jnp.where(fits, largest, 1))
    grid = jnp.ldexp(jnp.asarray(1.5, wide.dtype), exponent)
    # The next grid is as fine as the first one's rounding errors allow.
    finer = grid * 2.0 ** (n.bit_length() - limits.nmant - 1)
    coarse, rest = _split(wide, grid)
    fine, _ = _split(rest, finer)
    total = jnp.sum(coarse, axis=0) + jnp.sum(fine, axis=0)
    return jnp.where(fits, total / n, jnp.mean(wide, axis=0)).astype(x.dtype)


def _split(x, grid):
    """The nearest point of a grid of spacing ulp(grid), and what is left."""
    point = (x + grid[None]) - grid[None]
    return point, x - point
