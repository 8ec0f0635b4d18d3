"""The direction of Adam in float32 at least, safe to differentiate: what several rules start from.

    m <- b1 m + (1-b1) g,   v <- b2 v + (1-b2) g²,   u = m̂ / (√v̂ + ε),   x̂ = x / (1 - bᵗ)

Kingma and Ba 2015, arXiv:1412.6980. Differs from `optax.scale_by_adam` where that is not finite:
the derivative of √v at 0 counts as 0, and so does what goes beyond 1e16 in float32.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt import tree
from metaopt.core import Scalar
from metaopt.optimizers._numerics import moderate, quotient, root, wide_zeros, widen


def adam_direction(
    *, b1: Scalar, b2: Scalar, eps: Scalar, nesterov: bool = False
) -> optax.GradientTransformation:
    """Replaces gradients by u; with `nesterov`, by that of b1 m + (1-b1) g in the place of m."""

    def init(params):
        zeros = wide_zeros(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        del params
        grads = moderate(widen(updates))
        count = optax.safe_increment(state.count)
        mu = _like(optax.tree.update_moment(grads, state.mu, b1, 1), grads)
        nu = _like(optax.tree.update_moment(grads, state.nu, b2, 2), grads)
        ahead = optax.tree.update_moment(grads, mu, b1, 1) if nesterov else mu
        direction = jax.tree.map(
            lambda m, v: quotient(m, root(v) + eps),
            optax.tree.bias_correction(ahead, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        return _like(direction, grads), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _like(values: PyTree, grads: PyTree) -> PyTree:
    """Settings that are wider than the parameters do not widen the state."""
    return tree.cast_like(values, grads)
