"""OASIS: a diagonal of the Hessian as preconditioner, and a step size from the local curvature.

    D ← β D + (1−β) z ⊙ H z,    z = ±1,    D̂ = max(|D|, α)
    η' = min( √(1+θ) η,  ½ |w − w₋|_D̂ / |g − g₋|_D̂⁻¹ ),    θ = η'/η,    w ← w − η' g / D̂

with |x|²_D̂ = Σ D̂ x². Jahani et al. 2021, arXiv:2109.05198, algorithm 1; the step size is that of
Malitsky and Mishchenko 2019, arXiv:1910.09529, in the norm of D̂, and with H = 1 it is theirs. On
minibatches both gradients of the difference are taken on the batch of the step. Where they do not
differ, or the parameters did not move, η stays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._curvature import hvp_from
from metaopt.optimizers._numerics import (
    global_norm,
    moderate,
    quotient,
    refuse_decays,
    wide_zeros,
    widen,
)

# Ratios of step sizes beyond it do not come from curvature, and their derivatives overflow.
_MAX_GROWTH = 1e12


class OasisState(NamedTuple):
    """What a step is compared with.

    Attributes:
        count: steps taken.
        diagonal: D, signed.
        params: those before the last step.
        grads: the gradients there.
        rate: η.
        growth: θ; 0 until a step size has come from curvature.
    """

    count: Int[Array, ""]
    diagonal: PyTree
    params: PyTree
    grads: PyTree
    rate: Float[Array, ""]
    growth: Float[Array, ""]


@checked
def oasis(
    *,
    decay: Scalar = 0.99,
    floor: Scalar = 1e-5,
    initial_rate: Scalar = 1e-3,
    num_samples: int = 10,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """A complete optimizer without a learning rate: its updates are final.

    `update` needs the parameters and the extra argument `obj_fn(params) -> scalar`, or
    `hvp_fn(params, v)` in its place; on minibatches also `grad_fn(params, i)`, the gradient on the
    batch of this step at other parameters, without which that of the last step is compared.

    Args:
        decay: β of the diagonal. Traced.
        floor: α, smallest entry of D̂: what bounds steps along flat directions. Traced.
        initial_rate: η of the first step. Traced.
        num_samples: Hessian-vector products whose mean is the first D. Static.
        seed: of the random signs z, which are those of the step count. Static.

    Returns:
        A transformation whose updates have the dtypes of the gradients; its state is in float32 at
        least, but for the parameters.

    Raises:
        ValueError: if `decay` is outside [0, 1) or `num_samples` below 1; `update`, if it misses
            the parameters or `obj_fn`.
    """
    refuse_decays("oasis", decay=decay)
    if num_samples < 1:
        raise ValueError(f"oasis: num_samples must be at least 1, got {num_samples}.")

    def init(params):
        zeros = wide_zeros(params)
        dtype = jnp.result_type(float, *jax.tree.leaves(zeros))
        params = jax.tree.map(jnp.asarray, params)
        rate = jnp.asarray(initial_rate, dtype)
        return OasisState(
            jnp.zeros((), jnp.int32), zeros, params, zeros, rate, jnp.zeros((), dtype)
        )

    def update(updates, state, params=None, **extra_args):
        hvp_fn = hvp_from("oasis", params, extra_args)
        grads = moderate(widen(updates))

        def sample(index):
            key = jax.random.fold_in(jax.random.key(seed), state.count)
            key = jax.random.fold_in(key, index)
            z = optax.tree.random_like(key, state.params, jax.random.rademacher)
            return jax.tree.map(lambda a, b: a * b, widen(z), widen(hvp_fn(params, z)))

        diagonal = jax.lax.cond(
            state.count == 0,
            lambda: _mean_of(sample, num_samples, state.diagonal),
            lambda: optax.tree.update_moment(sample(0), state.diagonal, decay, 1),
        )
        diagonal = optax.tree.cast_like(diagonal, state.diagonal)
        scale = jax.tree.map(lambda d: jnp.maximum(jnp.abs(d), floor), diagonal)
        before = state.grads
        if extra_args.get("grad_fn") is not None:
            before = moderate(widen(extra_args["grad_fn"](state.params, 0)))
        rate, growth = _rate(state, params, grads, before, scale)
        steps = jax.tree.map(
            lambda g, d, u: (-rate.astype(g.dtype) * g / d).astype(u.dtype), grads, scale, updates
        )
        return steps, OasisState(state.count + 1, diagonal, params, grads, rate, growth)

    return optax.GradientTransformationExtraArgs(init, update)


def _mean_of(sample, count, like):
    """Of samples 0, 1, ..., one at a time."""

    def add(total, index):
        return jax.tree.map(
            lambda t, x: (t + x / count).astype(t.dtype), total, sample(index)
        ), None

    return jax.lax.scan(add, optax.tree.zeros_like(like), jnp.arange(count))[0]


def _rate(state, params, grads, before, scale):
    """η and θ of this step."""
    moved = global_norm(
        jax.tree.map(
            lambda p, q, d: (p - q) * jnp.sqrt(d), widen(params), widen(state.params), scale
        )
    )
    changed = global_norm(
        jax.tree.map(lambda g, h, d: (g - h) * jax.lax.rsqrt(d), grads, before, scale)
    )
    known = (moved > 0) & (changed > 0) & (state.count > 0)
    curvature_rate = 0.5 * quotient(jnp.where(known, moved, 0), jnp.where(known, changed, 0))
    # As if θ had been infinite before.
    unbounded = state.growth == 0
    grown = jnp.sqrt(1 + state.growth) * state.rate
    rate = jnp.where(unbounded, curvature_rate, jnp.minimum(grown, curvature_rate))
    rate = jnp.where(known, rate, state.rate).astype(state.rate.dtype)
    growth = jnp.minimum(quotient(rate, state.rate), _MAX_GROWTH)
    return rate, jnp.where(known, growth, state.growth).astype(state.rate.dtype)
