"""N:M sparsity: in every group of M weights N survive, and training goes on through the mask.

    mask = 1 for the N largest |w| of every M neighbours,    network = f(w · mask)
    straight-through    ∂L/∂w := ∂L/∂(w · mask)                      dense
    SR-STE              ∂L/∂w := ∂L/∂(w · mask) + λ (1 − mask) w

Zhou et al. 2021 (ICLR), arXiv:2102.04010: the second term shrinks pruned weights, so that
fewer of them come back. Masks are taken anew from the dense weights at every step.
"""

import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import check_sign, require_params
from metaopt.optimizers._numerics import widen


@checked
def nm_mask(
    weights: Float[Array, "..."], *, n: int = 2, m: int = 4, axis: int = -2
) -> Float[Array, "..."]:
    """The mask of the n largest of every m neighbours along an axis.

    Args:
        weights: an array whose length along the axis is a multiple of m.
        n: survivors of a group. Static.
        m: weights in a group. Static.
        axis: along which neighbours are grouped; -2, the inputs of `[fan_in, fan_out]`. Static.

    Returns:
        1 and 0 in the dtype of the weights, without a derivative; of equal weights the first ones
        survive, so every group has exactly n.

    Raises:
        ValueError: if `n` is not between 1 and `m`, or `m` does not divide the axis.
    """
    _check_pattern("nm_mask", n, m)
    if not -weights.ndim <= axis < weights.ndim or weights.shape[axis] % m:
        raise ValueError(
            f"nm_mask: m={m} must divide the length of axis={axis} of weights of shape "
            f"{weights.shape}; pad them, or leave the array dense."
        )
    size = jnp.moveaxis(jnp.abs(jax.lax.stop_gradient(weights)), axis, -1)
    groups = size.reshape(*size.shape[:-1], -1, m)
    # The rank of each, 0 for the largest; a stable sort, so that ties go by their places.
    rank = jnp.argsort(jnp.argsort(-groups, axis=-1), axis=-1)
    mask = (rank < n).astype(weights.dtype).reshape(size.shape)
    return jnp.moveaxis(mask, -1, axis)


@checked
def ste_sparse(weights: Float[Array, "..."], mask: Float[Array, "..."]) -> Float[Array, "..."]:
    """Masked weights, whose gradient passes to all weights as it is.

    Args:
        weights: dense weights w.
        mask: 1 and 0; or factors, such as `mask + (1 - mask) * factor` with a factor that falls
            from 1 to 0, which prunes by and by. Not differentiated.

    Returns:
        w · mask, with derivative 1 by w.
    """
    masked = jax.lax.stop_gradient(weights * mask)
    return masked + (weights - jax.lax.stop_gradient(weights))


@checked
def sr_ste(
    *, n: int = 2, m: int = 4, axis: int = -2, decay: Scalar = 2e-4
) -> optax.GradientTransformationExtraArgs:
    """Adds λ (1 − mask) w to gradients; chain it before any optimizer.

    The network itself is evaluated at `ste_sparse(w, nm_mask(w))`. Arrays with fewer than two axes
    and those whose axis m does not divide are left alone, as are their masks.

    Args:
        n: as in `nm_mask`. Static.
        m: as there. Static.
        axis: as there. Static.
        decay: λ. Traced.

    Returns:
        A transformation without state whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `n` is not between 1 and `m` or `decay` is negative; from `update`, without
            parameters.
    """
    _check_pattern("sr_ste", n, m)
    check_sign("sr_ste", strict=False, decay=decay)

    def init(params):
        del params
        return optax.EmptyState()

    def one(g, w):
        if w.ndim < 2 or not -w.ndim <= axis < w.ndim or w.shape[axis] % m:
            return g
        pruned = widen(w) * (1 - widen(nm_mask(w, n=n, m=m, axis=axis)))
        return (widen(g) + decay * pruned).astype(g.dtype)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        require_params("sr_ste", params)
        return jax.tree.map(one, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_pattern(name, n, m):
    if not 1 <= n <= m:
        raise ValueError(f"{name}: n={n} must be between 1 and m={m}, such as n=2, m=4.")
