"""Frank-Wolfe: convex problems over a set, with linear minimisation instead of projections.

    s_t = argmin over s in the set of ⟨∇f(x_t), s⟩,    x_{t+1} = x_t + 2/(t+1) · (s_t − x_t)
    f(x_t) − min ≤ ⟨∇f(x_t), x_t − s_t⟩ (the gap),     f(x_t) − min ≤ 2 L D²/(t+1),    t ≥ 1

with D the diameter of the set. Frank and Wolfe 1956 (Naval Research Logistics 3); Jaggi 2013
(ICML); as in Bubeck 2015, arXiv:1405.4980, theorem 3.8.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._solver import (
    FirstOrderSolver,
    check_positive,
    check_run,
    dot,
    move,
    runner,
    scalar_dtype,
    strong,
    subtract,
)

# Squared lengths below it count as zero; its power -3/2 must be a float32.
_TINY = 1e-24


class FrankWolfeState(NamedTuple):
    """Where Frank-Wolfe is.

    Attributes:
        params: x.
        vertex: s, where the next update moves to; the start itself before the first one.
        count: updates.
        error: the gap at `params`.
    """

    params: PyTree
    vertex: PyTree
    count: Int[Array, ""]
    error: Float[Array, ""]


@checked
def frank_wolfe(
    lmo: Callable[[PyTree], PyTree],
    *,
    projection: Callable[[PyTree], PyTree] | None = None,
    tol: Scalar = 1e-6,
    max_steps: int = 1000,
) -> FirstOrderSolver:
    """Frank-Wolfe on a smooth convex loss over a compact convex set.

    Args:
        lmo: `(gradient) -> s`, the point of the set with the least inner product: `simplex_lmo`,
            `l1_ball_lmo`, `nuclear_ball_lmo` or your own.
        projection: onto the same set; only the derivative of the solution needs it.
        tol: on the gap, which bounds how far the loss is from its minimum. Traced.
        max_steps: most updates; the first one only looks at the gradient of the start. Static.

    Returns:
        A solver of losses; starts must be in the set. Its residual is x − projection(x − ∇f(x)).

    Raises:
        ValueError: if a setting is out of range; when the residual is asked for and `projection`
            is None.
    """
    check_run("frank_wolfe", tol, max_steps)

    def init(params):
        params = strong(params)
        infinity = jnp.full((), jnp.inf, scalar_dtype(params))
        return FrankWolfeState(params, params, jnp.zeros((), jnp.int32), infinity)

    def update(loss, state):
        rate = 2 / (state.count + 1).astype(state.error.dtype)
        params = move(state.params, rate, subtract(state.vertex, state.params))
        gradient = jax.grad(loss)(params)
        vertex = jax.tree.map(lambda s, p: s.astype(p.dtype), lmo(gradient), params)
        gap = jax.lax.stop_gradient(dot(gradient, subtract(params, vertex)))
        return FrankWolfeState(params, vertex, state.count + 1, gap.astype(state.error.dtype))

    def residual(loss, params):
        if projection is None:
            raise ValueError(
                "frank_wolfe: projection=None, but the derivative of the solution needs the "
                "projection onto the set; pass one, such as optax.projections.projection_simplex."
            )
        return subtract(params, projection(move(params, -1, jax.grad(loss)(params))))

    run = runner(init, update, lambda state: state.params, tol, max_steps)
    return FirstOrderSolver(init, update, run, residual)


@checked
def simplex_lmo(*, radius: Scalar = 1.0) -> Callable[[PyTree], PyTree]:
    """Vertices of the simplex {x ≥ 0, Σ x = radius} of all entries of a tree.

    Args:
        radius: sum of the entries. Traced.

    Returns:
        `(gradient) -> vertex`; the projection is `optax.projections.projection_simplex`.

    Raises:
        ValueError: if `radius` is not positive.
    """
    check_positive("simplex_lmo", radius=radius)

    def lmo(gradient):
        flat, unravel = ravel_pytree(gradient)
        return unravel(_corner(jnp.argmin(flat), radius, flat))

    return lmo


@checked
def l1_ball_lmo(*, radius: Scalar = 1.0) -> Callable[[PyTree], PyTree]:
    """Vertices of the ball {Σ |x| ≤ radius} of all entries of a tree.

    Args:
        radius: of the ball. Traced.

    Returns:
        `(gradient) -> vertex`; the projection is `optax.projections.projection_l1_ball`.

    Raises:
        ValueError: if `radius` is not positive.
    """
    check_positive("l1_ball_lmo", radius=radius)

    def lmo(gradient):
        flat, unravel = ravel_pytree(gradient)
        index = jnp.argmax(jnp.abs(flat))
        sign = jnp.where(flat[index] > 0, -1.0, 1.0)
        return unravel(_corner(index, sign * radius, flat))

    return lmo


@checked
def nuclear_ball_lmo(*, radius: Scalar = 1.0, num_steps: int = 50) -> Callable[[PyTree], PyTree]:
    """Extreme points of the ball of matrices whose singular values sum to at most the radius.

    Each matrix of a tree has a ball of its own. The leading pair of singular vectors is found by
    power iteration, from a fixed start, and counts as a constant.

    Args:
        radius: of the ball. Traced.
        num_steps: products with GᵀG. Static.

    Returns:
        `(gradient) -> −radius · u vᵀ`, which raises a ValueError for leaves that are no matrices.

    Raises:
        ValueError: if `radius` or `num_steps` is not positive.
    """
    check_positive("nuclear_ball_lmo", radius=radius, num_steps=num_steps)

    def one(gradient):
        if gradient.ndim != 2:
            raise ValueError(
                f"nuclear_ball_lmo: leaves must be matrices, got shape {gradient.shape}."
            )
        matrix = jax.lax.stop_gradient(gradient).astype(scalar_dtype(gradient))
        largest = jnp.max(jnp.abs(matrix))
        matrix = matrix / jnp.where(largest > 0, largest, 1)
        # Nothing but chance keeps a generic start from being orthogonal to the answer.
        start = np.random.default_rng(0).normal(size=matrix.shape[1]).astype(matrix.dtype)

        def product(_, v):
            return _unit(matrix.T @ (matrix @ v))

        v = jax.lax.fori_loop(0, num_steps, product, _unit(jnp.asarray(start)))
        return -radius * jnp.outer(_unit(matrix @ v), v)

    return lambda gradient: jax.tree.map(one, gradient)


def _corner(index, value, like):
    return jnp.where(jnp.arange(like.size) == index, value, 0).astype(like.dtype)


def _unit(v):
    return v * jax.lax.rsqrt(jnp.sum(v**2) + _TINY)
