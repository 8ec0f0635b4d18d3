"""AI-SARAH: recursive variance reduction whose step size minimises the next direction's length.

    v ← ∇f(w);  then, on one batch S after the other, while ‖v‖² ≥ γ ‖v₀‖²:
    ξ(α) = ‖∇f_S(w − α v) − ∇f_S(w) + v‖²,    α = min(−ξ'(0)/|ξ''(0)|, α_max)
    δ ← β δ + (1 − β) |ξ''(0)|/(−ξ'(0)),      α_max = 1/δ
    w' = w − α v,    v ← ∇f_S(w') − ∇f_S(w) + v

Shi, Sadiev, Loizou, Richtárik and Takáč 2021, arXiv:2102.09700, algorithm 2; δ starts from the
first quotient. ξ' and ξ'' are exact, by nested forward mode. Differs from the paper: a batch with
ξ'(0) ≥ 0, along which the direction does not shrink, takes no step and leaves δ alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known, wide


class AISarahState(NamedTuple):
    """Where the loop is.

    Attributes:
        params: w.
        direction: v.
        start2: ‖v₀‖², of the last full gradient.
        inverse: δ; 0 before the first step.
        num_full: full gradients taken.
        num_inner: steps taken on batches.
    """

    params: PyTree
    direction: PyTree
    start2: Float[Array, ""]
    inverse: Float[Array, ""]
    num_full: Int[Array, ""]
    num_inner: Int[Array, ""]


class AISarah(NamedTuple):
    """The loop in three parts.

    Attributes:
        init: `(params) -> state`.
        outer_step: `(state, batch) -> state`, the full gradient on all examples.
        inner_step: `(state, batch) -> state`, a step on some of them; to be unrolled if its
            derivative is wanted.
        inner_loop: `(state, draw, key) -> state`, steps on batches `draw(key)` until v is short.
            Not differentiable in reverse mode; a solution found by it is, by
            `metaopt.implicit.root`.
    """

    init: Callable[[PyTree], AISarahState]
    outer_step: Callable[[AISarahState, Any], AISarahState]
    inner_step: Callable[[AISarahState, Any], AISarahState]
    inner_loop: Callable[..., AISarahState]


@checked
def ai_sarah(
    grad_fn: Callable[[PyTree, Any], PyTree],
    *,
    gamma: Scalar = 1 / 32,
    beta: Scalar = 0.999,
    max_inner_steps: int = 10_000,
) -> AISarah:
    """Minimises a mean of smooth convex losses without a learning rate.

    Args:
        grad_fn: `(params, batch) -> gradient`, twice differentiable in forward mode.
        gamma: the share of ‖v₀‖² at which a new full gradient is due. Traced.
        beta: decay of δ. Traced.
        max_inner_steps: most steps of one `inner_loop`. Static.

    Returns:
        Functions of a state; near convergence they ask for float64.

    Raises:
        ValueError: if `gamma` or `beta` is outside (0, 1), or `max_inner_steps` is below 1.
    """
    for name, share in {"gamma": gamma, "beta": beta}.items():
        if known(share) and not 0 < share < 1:
            raise ValueError(f"ai_sarah: {name} must be between 0 and 1, got {share}.")
    if max_inner_steps < 1:
        raise ValueError(f"ai_sarah: max_inner_steps must be at least 1, got {max_inner_steps}.")

    def init(params):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(p)), params)
        zero = jnp.zeros((), jnp.result_type(jnp.float32, *map(wide, jax.tree.leaves(params))))
        count = jnp.zeros((), jnp.int32)
        return AISarahState(params, optax.tree.zeros_like(params), zero, zero, count, count)

    def outer_step(state, batch):
        direction = optax.tree.cast_like(grad_fn(state.params, batch), state.params)
        return state._replace(
            direction=direction,
            start2=_squared(direction).astype(state.start2.dtype),
            num_full=state.num_full + 1,
        )

    def inner_step(state, batch):
        before = grad_fn(state.params, batch)

        def moved(alpha):
            return jax.tree.map(
                lambda p, v: (p - alpha * v).astype(p.dtype), state.params, state.direction
            )

        def next_direction(alpha):
            there = grad_fn(moved(alpha), batch)
            return jax.tree.map(
                lambda g, b, v: (g - b + v).astype(v.dtype), there, before, state.direction
            )

        slope, curvature = _derivatives(lambda a: _squared(next_direction(a)), state.start2.dtype)
        alpha, inverse = _step_size(slope, curvature, state.inverse, beta)
        return state._replace(
            params=moved(alpha),
            direction=next_direction(alpha),
            inverse=inverse.astype(state.inverse.dtype),
            num_inner=state.num_inner + 1,
        )

    def inner_loop(state, draw, key):
        first = state.num_inner

        def going(state):
            long = _squared(state.direction) >= gamma * state.start2
            return long & (state.start2 > 0) & (state.num_inner - first < max_inner_steps)

        def step(state):
            return inner_step(state, draw(jax.random.fold_in(key, state.num_inner)))

        return jax.lax.while_loop(going, step, state)

    return AISarah(init, outer_step, inner_step, inner_loop)


def _derivatives(function, dtype):
    """The first two at 0."""
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)

    def slope(alpha):
        return jax.jvp(function, (alpha,), (one,))[1]

    return jax.jvp(slope, (zero,), (one,))


def _step_size(slope, curvature, inverse, beta):
    """α and the next δ."""
    size = jnp.abs(curvature)
    tiny = float(jnp.finfo(size.dtype).tiny) ** 0.25
    usable = (slope < 0) & (size > tiny * -slope) & (tiny * size < -slope)
    slope, size = jnp.where(usable, -slope, 1), jnp.where(usable, size, 1)
    started = inverse > 0
    bound = 1 / jnp.where(started, inverse, 1)
    alpha = jnp.where(started, jnp.minimum(slope / size, bound), slope / size)
    new = jnp.where(started, beta * inverse + (1 - beta) * size / slope, size / slope)
    return jnp.where(usable, alpha, 0), jnp.where(usable, new, inverse)


def _squared(tree: PyTree) -> Float[Array, ""]:
    dtype = jnp.result_type(jnp.float32, *map(wide, jax.tree.leaves(tree)))
    return sum(
        (jnp.sum(x.astype(dtype) ** 2) for x in jax.tree.leaves(tree)), start=jnp.zeros((), dtype)
    )
