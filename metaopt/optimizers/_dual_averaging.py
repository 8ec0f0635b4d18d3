"""Dual averaging: every point minimises all gradients so far plus a distance from the start.

    xₜ₊₁ = argmin over x of ⟨Σ_{s ≤ t} gₛ, x⟩ + (Φ(x) − ⟨∇Φ(x₁), x⟩) / ηₜ

Nesterov 2009, doi:10.1007/s10107-007-0149-x; as in Bubeck 2015, arXiv:1405.4980, §4.4. Mirror
descent forgets what the projection took away, this does not: with a constant η they are the same
where nothing is projected, and on simplices with the entropy. A step size that falls as 1/√t needs
no horizon, and all gradients keep the same weight.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._mirror import MirrorMap
from metaopt.optimizers._solver import (
    FirstOrderSolver,
    check_positive,
    check_run,
    length,
    move,
    runner,
    scalar_dtype,
    strong,
    subtract,
)
from metaopt.tree import cast_like


class DualAveragingState(NamedTuple):
    """Where dual averaging is.

    Attributes:
        origin: the start in dual coordinates, float32 at least.
        total: the sum of all gradients, likewise.
        average: mean of the points where gradients were taken; the start before the first one.
        count: steps taken.
        error: length of a step of mirror descent from the last of these points, over the step size.
    """

    origin: PyTree
    total: PyTree
    average: PyTree
    count: Int[Array, ""]
    error: Float[Array, ""]


@checked
def dual_averaging(
    mirror_map: MirrorMap,
    step_size: optax.ScalarOrSchedule,
    *,
    average: bool = True,
    tol: Scalar = 1e-6,
    max_steps: int = 1000,
) -> FirstOrderSolver:
    """Dual averaging on a convex loss, which need not be smooth.

    Args:
        mirror_map: the geometry, as in `mirror_descent`.
        step_size: η, a scalar or a schedule of the number of gradients, from 1 on; such as
            `lambda t: 0.1 / jnp.sqrt(t)`. Traced.
        average: answer with the mean of the points where gradients were taken, otherwise with the
            last point. Static.
        tol: on `error`. Traced.
        max_steps: most steps. Static.

    Returns:
        A solver of losses. Its residual is what a step of mirror descent changes.

    Raises:
        ValueError: if a setting is not positive.
    """
    if not callable(step_size):
        check_positive("dual_averaging", step_size=step_size)
    check_run("dual_averaging", tol, max_steps)

    def rate(count):
        eta = step_size(jnp.maximum(count, 1)) if callable(step_size) else step_size
        return jnp.asarray(eta)

    def to_dual(params):
        return mirror_map.dual(jax.tree.map(lambda p: p.astype(scalar_dtype(p)), params))

    def to_primal(dual, like):
        return cast_like(mirror_map.primal(mirror_map.project(dual)), like)

    def point(state):
        dual = move(state.origin, -rate(state.count), state.total)
        return to_primal(dual, state.average)

    def change(params, gradient, eta):
        return subtract(params, to_primal(move(to_dual(params), -eta, gradient), params))

    def init(params):
        params = strong(params)
        origin = to_dual(params)
        zeros = jax.tree.map(jnp.zeros_like, origin)
        infinity = jnp.full((), jnp.inf, scalar_dtype(params))
        return DualAveragingState(origin, zeros, params, jnp.zeros((), jnp.int32), infinity)

    def update(loss, state):
        here = point(state)
        gradient = jax.grad(loss)(here)
        count = state.count + 1
        mean = move(
            state.average, 1 / count.astype(state.error.dtype), subtract(here, state.average)
        )
        eta = jax.lax.stop_gradient(rate(count))
        error = length(change(here, gradient, eta)) / eta
        total = move(state.total, 1, gradient)
        return DualAveragingState(state.origin, total, mean, count, error.astype(state.error.dtype))

    def residual(loss, params):
        return change(params, jax.grad(loss)(params), rate(1))

    def answer(state):
        return state.average if average else point(state)

    return FirstOrderSolver(init, update, runner(init, update, answer, tol, max_steps), residual)
