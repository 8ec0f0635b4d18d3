"""Clipping of gradients by a percentile of the norms seen so far (AutoClip), and by a fixed norm.

    g <- g · min(1, c / ‖g‖),    c = the p-th percentile of the norms so far

The current norm is one of them. Seetharaman et al. 2020, arXiv:2007.14469; clipping by a fixed c:
Pascanu et al. 2013, arXiv:1211.5063. The authors keep all norms, here the last H of them are kept.
Where all gradients are 0, derivatives are finite, while that of `optax.clip_by_global_norm` is NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import global_norm, known, wide


class AutoClipState(NamedTuple):
    """Norms of gradients.

    Attributes:
        norms: the last ones in a ring, infinite where there are none yet.
        count: finite norms so far.
    """

    norms: Float[Array, "history"]
    count: Int[Array, ""]


@checked
def auto_clip(
    *, percentile: Scalar = 10.0, history: int = 1000
) -> optax.GradientTransformationExtraArgs:
    """Clips gradients to a percentile of their norms, interpolated as `numpy.percentile` does.

    A stage: put it before a rule. The first gradient is never clipped. Where many gradients are 0,
    so may be the percentile, and with it all updates. A gradient that is not finite is passed on as
    it is and not counted.

    Args:
        percentile: p, from 0 to 100. Traced; norms of the past count as constants.
        history: norms H that are kept. Static.

    Returns:
        A transformation whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `percentile` is outside [0, 100] or `history` below 1.
    """
    if known(percentile) and not 0 <= percentile <= 100:
        raise ValueError(
            f"auto_clip: percentile must be in [0, 100], got {percentile}; 100 never clips."
        )
    if history < 1:
        raise ValueError(f"auto_clip: history must be at least 1, got {history}; try 1000.")

    def init(params):
        dtype = jnp.result_type(jnp.float32, *map(wide, jax.tree.leaves(params)))
        return AutoClipState(jnp.full((history,), jnp.inf, dtype), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        norm = global_norm(updates)
        counted, place = jnp.isfinite(norm), state.count % history
        kept = jnp.where(counted, norm.astype(state.norms.dtype), state.norms[place])
        norms = jax.lax.stop_gradient(state.norms.at[place].set(kept))
        count = jnp.where(counted, optax.safe_increment(state.count), state.count)
        threshold = _percentile(norms, jnp.minimum(count, history), percentile)
        return _clipped(updates, norm, threshold), AutoClipState(norms, count)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def safe_clip_by_global_norm(max_norm: Scalar) -> optax.GradientTransformationExtraArgs:
    """Clips gradients by their norm, as `optax.clip_by_global_norm`, but differentiable at 0.

    A stage: put it before a rule. A gradient that is not finite is passed on as it is; norms whose
    square overflows are found all the same.

    Args:
        max_norm: the largest norm of an update. Traced.

    Returns:
        A transformation without a state whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `max_norm` is negative.
    """
    if known(max_norm) and not max_norm >= 0:
        raise ValueError(
            f"safe_clip_by_global_norm: max_norm must not be negative, got {max_norm}; try 1."
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        return _clipped(updates, global_norm(updates), max_norm), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _percentile(norms, count, percentile):
    """Of the `count` smallest entries; infinite for none."""
    ordered = jnp.sort(norms)
    ordered = jnp.where(jnp.isfinite(ordered), ordered, 0)
    last = jnp.maximum(count - 1, 0)
    position = percentile / 100 * last.astype(norms.dtype)
    below = jnp.clip(jax.lax.stop_gradient(jnp.floor(position)).astype(jnp.int32), 0, last)
    above = jnp.minimum(below + 1, last)
    share = position - below.astype(norms.dtype)
    value = ordered[below] + share * (ordered[above] - ordered[below])
    return jnp.where(count > 0, value, jnp.inf)


def _clipped(updates, norm, threshold):
    is_long = jnp.isfinite(norm) & (norm > threshold)
    scale = jnp.where(is_long, threshold / jnp.where(is_long, norm, 1), 1)
    return jax.tree.map(lambda g: (scale * g.astype(wide(g))).astype(g.dtype), updates)
