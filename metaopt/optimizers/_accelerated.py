"""Accelerated gradient descent and its proximal form (FISTA), for convex inner problems.

    y_{s+1} = prox(x_s − ∇f(x_s)/L),    x_{s+1} = y_{s+1} + (λ_s − 1)/λ_{s+1} · (y_{s+1} − y_s)
    λ_{s+1} = (1 + √(1 + 4 λ_s²))/2,    λ_1 = 1,        objective(y_{T+1}) − min ≤ 2 L R²/(T+1)²

with R the distance of the start from a solution. Nesterov 1983 (Soviet Math. Dokl. 27); Beck and
Teboulle 2009, SIAM J. Imaging Sciences 2; as in Bubeck 2015, arXiv:1405.4980, theorem 3.19. With
strong convexity m the factor of the difference is the constant (√L − √m)/(√L + √m), theorem 3.18.
Restarts: the gradient scheme of O'Donoghue and Candès 2015, arXiv:1204.3982, §3.2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known
from metaopt.optimizers._solver import (
    FirstOrderSolver,
    check_positive,
    check_run,
    dot,
    length,
    move,
    runner,
    scalar_dtype,
    strong,
    subtract,
)


class AcceleratedState(NamedTuple):
    """Where an accelerated method is.

    Attributes:
        params: y, the answer so far.
        extrapolated: x, where the next gradient is taken.
        weight: λ of the next step.
        count: steps taken.
        error: length of L (x − y), the (generalised) gradient, at the last x.
    """

    params: PyTree
    extrapolated: PyTree
    weight: Float[Array, ""]
    count: Int[Array, ""]
    error: Float[Array, ""]


@checked
def agd(
    smoothness: Scalar,
    *,
    strong_convexity: Scalar | None = None,
    tol: Scalar = 1e-6,
    max_steps: int = 1000,
) -> FirstOrderSolver:
    """Accelerated gradient descent on a smooth convex loss.

    Args:
        smoothness: L, at least the largest eigenvalue of the Hessian. Traced.
        strong_convexity: m, at most its smallest one, or None for the weights that need none.
            Traced.
        tol: on the length of the gradient; rounding leaves about L |params| times the precision of
            the dtype. Traced.
        max_steps: most steps. Static.

    Returns:
        A solver of losses, whose residual is the gradient.

    Raises:
        ValueError: if a setting is not positive, or `strong_convexity` exceeds `smoothness`.
    """
    check_positive("agd", smoothness=smoothness)
    if strong_convexity is not None:
        check_positive("agd", strong_convexity=strong_convexity)
        if known(smoothness) and known(strong_convexity) and strong_convexity > smoothness:
            raise ValueError(
                f"agd: strong_convexity={strong_convexity} exceeds smoothness={smoothness}; it is "
                "the smallest eigenvalue of the Hessian, smoothness the largest."
            )

    def momentum(weight, weight_next):
        if strong_convexity is None:
            return (weight - 1) / weight_next
        high, low = jnp.sqrt(smoothness), jnp.sqrt(strong_convexity)
        return (high - low) / (high + low)

    step = _plain_step(lambda params, step_size: params, smoothness)
    solver = _accelerated("agd", step, momentum, smoothness, False, tol, max_steps)
    return solver._replace(residual=lambda loss, params: jax.grad(loss)(params))


@checked
def fista(
    prox: Callable[[PyTree, Scalar], PyTree],
    smoothness: Scalar,
    *,
    restart: bool = False,
    tol: Scalar = 1e-6,
    max_steps: int = 1000,
) -> FirstOrderSolver:
    """FISTA: accelerated proximal gradient descent on a smooth loss plus a simple convex term r.

    Args:
        prox: `(params, step_size) -> argmin_x r(x) step_size + |x − params|²/2`. For α Σ|x| this
            is `jnp.sign(x) * jnp.maximum(jnp.abs(x) - alpha * step_size, 0)`; for a constraint
            the projection.
        smoothness: L of the smooth loss. Traced.
        restart: forget the momentum whenever it points uphill. Static.
        tol: on the length of L (x − prox(x − ∇f(x)/L)). Traced.
        max_steps: most steps. Static.

    Returns:
        A solver of smooth losses f, of the problem f + r. Its residual is x − prox(x − ∇f(x)/L).

    Raises:
        ValueError: if a setting is not positive.
    """
    check_positive("fista", smoothness=smoothness)
    step = _plain_step(prox, smoothness)

    def momentum(weight, weight_next):
        return (weight - 1) / weight_next

    return _accelerated("fista", step, momentum, smoothness, restart, tol, max_steps)


def _plain_step(prox, smoothness):
    def step(loss, x):
        return prox(move(x, -1 / smoothness, jax.grad(loss)(x)), 1 / smoothness)

    return step


def _accelerated(name, step, momentum, smoothness, restart, tol, max_steps):
    check_run(name, tol, max_steps)

    def init(params):
        params, dtype = strong(params), scalar_dtype(params)
        infinity = jnp.full((), jnp.inf, dtype)
        return AcceleratedState(
            params, params, jnp.ones((), dtype), jnp.zeros((), jnp.int32), infinity
        )

    def update(loss, state):
        dtype = state.weight.dtype
        x, before = state.extrapolated, state.params
        y = jax.tree.map(lambda new, old: new.astype(old.dtype), step(loss, x), x)
        weight, difference = state.weight, subtract(y, before)
        if restart:
            uphill = dot(subtract(x, y), difference) > 0
            weight = jnp.where(uphill, 1.0, weight).astype(dtype)
        weight_next = (1 + jnp.sqrt(1 + 4 * weight**2)) / 2
        extrapolated = move(y, momentum(weight, weight_next), difference)
        error = (jax.lax.stop_gradient(smoothness) * length(subtract(x, y))).astype(dtype)
        return AcceleratedState(y, extrapolated, weight_next.astype(dtype), state.count + 1, error)

    def residual(loss, params):
        return subtract(params, step(loss, params))

    run = runner(init, update, lambda state: state.params, tol, max_steps)
    return FirstOrderSolver(init, update, run, residual)
