"""diffGrad: Adam with a friction where the gradient does not change.

    d = ξ m̂ / (√v̂ + ε),    ξ = sigmoid(|gₜ₋₁ − gₜ|),    g₀ = 0

Dubey et al. 2020, arXiv:1909.11015. ξ is between 1/2, where gradients repeat themselves, and 1. The
first published code compared a gradient with itself, so that ξ was always 1/2; this is not that
rule. ε is added after the correction for the start; in the code before it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._adam_direction import adam_direction
from metaopt.optimizers._numerics import moderate, refuse_decays, wide_zeros, widen


class DiffGradState(NamedTuple):
    """The moments of Adam, and one gradient.

    Attributes:
        adam: as in `optax.scale_by_adam`, in float32 at least.
        previous: the last gradient, likewise.
    """

    adam: PyTree
    previous: PyTree


@checked
def scale_by_diffgrad(
    *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by Adam's direction times the friction.

    Args:
        b1: decay of the first moment. Traced.
        b2: decay of the second moment. Traced.
        eps: ε. Traced.

    Returns:
        A transformation whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if a decay is outside [0, 1).
    """
    refuse_decays("scale_by_diffgrad", b1=b1, b2=b2)
    adam = adam_direction(b1=b1, b2=b2, eps=eps)

    def init(params):
        return DiffGradState(adam.init(params), wide_zeros(params))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        grads = moderate(widen(updates))
        direction, adam_state = adam.update(grads, state.adam)

        def rubbed(u, g, before, like):
            return (jax.nn.sigmoid(jnp.abs(before - g)) * u).astype(like.dtype)

        new = jax.tree.map(rubbed, direction, grads, state.previous, updates)
        return new, DiffGradState(adam_state, grads)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def diffgrad(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """DiffGrad with the weight decay of the original, coupled: a part of the gradient.

    Args:
        learning_rate: step size, a scalar or a schedule. Traced.
        b1: as in `scale_by_diffgrad`.
        b2: as there.
        eps: as there.
        weight_decay: multiple of the parameters added to the gradients. Traced.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `scale_by_diffgrad`.
    """
    return optax.with_extra_args_support(
        optax.chain(
            optax.add_decayed_weights(weight_decay),
            scale_by_diffgrad(b1=b1, b2=b2, eps=eps),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
