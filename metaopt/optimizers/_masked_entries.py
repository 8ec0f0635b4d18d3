"""Sparse training: a few weights of every neuron learn, the others stay what they were.

    mask = 1 for the largest |w| among the inputs of a neuron, at the start
    w ← w + mask · u(mask · g)

Zhang et al. 2024, arXiv:2411.18615: gradients of several tasks, cut down to the same few weights of
a network that was trained before, are said to conflict less. `optax.masked` and `optax.freeze` act
on whole arrays; this on their entries.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt.core import Params, Scalar, checked
from metaopt.optimizers._numerics import known


class MaskedEntriesState(NamedTuple):
    """State of `masked_entries`.

    Attributes:
        mask: which entries learn, booleans like the parameters.
        inner: state of the wrapped optimizer.
    """

    mask: PyTree
    inner: Any


@checked
def topk_per_neuron_mask(params: Params, fraction: Scalar, *, neuron_axis: int = -1) -> PyTree:
    """The largest weights among the inputs of every neuron.

    Args:
        params: weights; arrays with fewer than two axes, such as biases, learn as a whole.
        fraction: the share of the inputs of a neuron, in (0, 1]; rounded, and at least one. Traced.
        neuron_axis: the axis that counts neurons; -1 for weights `[fan_in, fan_out]` and kernels
            `[height, width, fan_in, fan_out]`. Static.

    Returns:
        Booleans like the parameters; of equal weights the first ones are taken.

    Raises:
        ValueError: if `fraction` is outside (0, 1].
    """
    if known(fraction) and not 0 < fraction <= 1:
        raise ValueError(
            f"topk_per_neuron_mask: fraction must be in (0, 1], got {fraction}; it is the share of "
            "weights that learn."
        )

    def one(w):
        w = jnp.asarray(w)
        if w.ndim < 2:
            return jnp.ones(w.shape, bool)
        size = jnp.moveaxis(jnp.abs(jax.lax.stop_gradient(w)), neuron_axis, -1)
        flat = size.reshape(-1, size.shape[-1])
        # The rank of each, 0 for the largest; a stable sort, so that ties go by their places.
        rank = jnp.argsort(jnp.argsort(-flat, axis=0), axis=0)
        chosen = rank < jnp.maximum(jnp.round(fraction * len(flat)), 1)
        return jnp.moveaxis(chosen.reshape(size.shape), -1, neuron_axis)

    return jax.tree.map(one, params)


@checked
def masked_entries(
    inner: optax.GradientTransformation, mask: PyTree
) -> optax.GradientTransformationExtraArgs:
    """Lets an optimizer see and move some entries alone.

    What is not in the mask stays bit for bit, also under weight decay, and counts as a gradient of
    zero, whatever it is, in norms and in aggregators: rows of a Jacobian tree are masked alike.

    Args:
        inner: any optimizer.
        mask: a tree like the parameters, of booleans that broadcast to them, or a function that
            `init` gets such a tree from, as `partial(topk_per_neuron_mask, fraction=0.3)`.

    Returns:
        An optimizer with the updates of the inner one, 0 outside of the mask.

    Raises:
        ValueError: from `init`, if the mask is no tree like the parameters.
    """
    inner_opt = optax.with_extra_args_support(inner)

    def init(params):
        chosen = mask(params) if callable(mask) else mask
        if jax.tree.structure(chosen) != jax.tree.structure(params):
            raise ValueError(
                f"masked_entries: mask must be a tree like the parameters, "
                f"{jax.tree.structure(params)}; got {jax.tree.structure(chosen)}."
            )
        chosen = jax.tree.map(
            lambda m, p: jnp.broadcast_to(jnp.asarray(m, bool), jnp.shape(p)), chosen, params
        )
        return MaskedEntriesState(chosen, inner_opt.init(params))

    def update(updates, state, params=None, **extra_args):
        seen = jax.tree.map(_cut, updates, state.mask)
        moved, inner_state = inner_opt.update(seen, state.inner, params, **extra_args)
        return jax.tree.map(_cut, moved, state.mask), MaskedEntriesState(state.mask, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _cut(x, mask):
    """Zero outside of the mask; `x` may have axes in front."""
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    return jnp.where(mask, x, jnp.zeros_like(x))
