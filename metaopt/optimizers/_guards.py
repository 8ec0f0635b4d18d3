"""What keeps the updates of a rule finite: it is not shown what it cannot take.

Not repairs of results. Where all gradients so far are zero, a rule that divides by their sum has
not begun; a square that overflows is that of a clipped number; a scalar is a vector of length one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from metaopt import tree
from metaopt.optimizers._numerics import moderate


class FirstGradientState(NamedTuple):
    """Of `from_first_gradient`.

    Attributes:
        begun: whether there was a gradient.
        inner: the state of the rule.
    """

    begun: Bool[Array, ""]
    inner: Any


def from_first_gradient(
    opt: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The rule from the first step on whose gradient is not zero; until then nothing moves.

    An entry counts from the power 3/4 of the smallest normal number on: 3e-29 in float32.
    """

    def init(params):
        return FirstGradientState(jnp.array(False), opt.init(params))

    def update(updates, state, params=None, **extra_args):
        begun = state.begun
        for g in jax.tree.leaves(updates):
            begun = begun | jnp.any(jnp.abs(g) > float(jnp.finfo(g.dtype).tiny) ** 0.75)
        # Guarded before and after: a derivative passes through both branches.
        shown = jax.tree.map(lambda g: jnp.where(begun, g, 1).astype(g.dtype), updates)
        new, inner = opt.update(shown, state.inner, params, **extra_args)
        inner = tree.where(begun, inner, state.inner)
        new = jax.tree.map(lambda u: jnp.where(begun, u, 0).astype(u.dtype), new)
        return new, FirstGradientState(begun, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def with_moderate_gradients(
    opt: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The rule of gradients clipped to where their squares are finite: 1e16 in float32."""

    def update(updates, state, params=None, **extra_args):
        return opt.update(moderate(updates), state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(opt.init, update)


def without_scalars(
    opt: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The rule of a tree whose scalars have become vectors of length one."""

    def vectors(values):
        return jax.tree.map(jnp.atleast_1d, values)

    def init(params):
        return opt.init(vectors(params))

    def update(updates, state, params=None, **extra_args):
        new, state = opt.update(vectors(updates), state, vectors(params), **extra_args)
        return jax.tree.map(lambda u, g: u.reshape(jnp.shape(g)), new, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
