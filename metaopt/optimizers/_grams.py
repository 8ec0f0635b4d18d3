"""Grams: the direction of the gradient, with the step lengths of Adam.

    d = sign(g) · |u|,    u = m̂ / (√v̂ + ε) as in Adam

Cao et al. 2024, arXiv:2412.17107. A coordinate whose gradient is 0 does not move, although it has a
momentum. ε is added after the correction for the start, as in optax's Adam; in the authors' code
before it.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Scalar, checked
from metaopt.optimizers._adam_direction import adam_direction
from metaopt.optimizers._numerics import refuse_decays


@checked
def scale_by_grams(
    *, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-6
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by their signs times the sizes of Adam's direction.

    Signs contribute nothing to derivatives: a meta-gradient does not see that a gradient which
    crosses 0 turns its update round.

    Args:
        b1: decay of the first moment. Traced.
        b2: decay of the second moment. Traced.
        eps: ε. Traced.

    Returns:
        A transformation whose updates have the dtypes of the gradients; its state, that of
        `optax.scale_by_adam`, is in float32 at least.

    Raises:
        ValueError: if a decay is outside [0, 1).
    """
    refuse_decays("scale_by_grams", b1=b1, b2=b2)
    adam = adam_direction(b1=b1, b2=b2, eps=eps)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        direction, state = adam.update(updates, state)
        return jax.tree.map(_with_sign, updates, direction), state

    return optax.GradientTransformationExtraArgs(adam.init, update)


@checked
def grams(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Grams with decoupled weight decay.

    Args:
        learning_rate: step size, a scalar or a schedule. Traced.
        b1: as in `scale_by_grams`.
        b2: as there.
        eps: as there.
        weight_decay: multiple of the parameters added to the direction. Traced.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `scale_by_grams`.
    """
    return optax.with_extra_args_support(
        optax.chain(
            scale_by_grams(b1=b1, b2=b2, eps=eps),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def _with_sign(g, u):
    return (jnp.sign(g).astype(u.dtype) * jnp.abs(u)).astype(g.dtype)
