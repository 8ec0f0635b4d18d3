"""Outer optimizers that leave part of `theta` bit for bit as it is.

    u <- outer_opt's update where trainable, 0 elsewhere

Updates are masked, not gradients: decoupled weight decay, or momentum from before, would move a
leaf whose gradient is zero.
"""

from collections.abc import Callable, Hashable

import optax
from jaxtyping import PyTree

from metaopt.core import checked


@checked
def train_only(
    outer_opt: optax.GradientTransformation, trainable: PyTree | Callable[[PyTree], PyTree]
) -> optax.GradientTransformationExtraArgs:
    """The outer optimizer restricted to some leaves; it keeps no state for the others.

    Args:
        outer_opt: any optax optimizer; it sees the trainable leaves only, so that a global norm is
            theirs too.
        trainable: booleans, a tree like `theta` or a prefix of it, or a function that makes one
            from `theta`. Static.

    Returns:
        An optax optimizer of the whole `theta`; gradients of other leaves may be NaN.
    """
    opts: dict[Hashable, optax.GradientTransformation] = {
        True: outer_opt,
        False: optax.set_to_zero(),
    }
    return optax.multi_transform(opts, trainable)
