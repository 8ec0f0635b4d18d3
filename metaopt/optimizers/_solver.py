"""What solvers of convex problems share: init, update, run, and the derivative of a solution.

    R(x*(θ), θ) = 0        ⇒        ∂R/∂x · dx* = −∂R/∂θ · dθ

R is what one plain step of the method changes: a gradient, or x − T(x) with T a proximal, projected
or mirrored step. How x* was found does not matter: loops end by a tolerance and are not
differentiated. Blondel et al. 2021, arXiv:2105.15183, §2.2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.implicit import LinearSolver, OnFailure, Solution, Status, root
from metaopt.optimizers._numerics import global_norm, known


class SolverInfo(NamedTuple):
    """How a run ended.

    Attributes:
        error: what is compared with the tolerance; each solver says what it measures.
        num_steps: updates.
        status: one of `metaopt.implicit.Status`: OK, MAX_STEPS or NONFINITE.
    """

    error: Float[Array, ""]
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


class FirstOrderSolver(NamedTuple):
    """Pure functions of a problem: a loss `(params) -> scalar`, or an operator `(params) -> tree`.

    Attributes:
        init: `(params) -> state`.
        update: `(problem, state) -> state`, one step, to be unrolled if its derivative is wanted.
        run: `(problem, params) -> (params, SolverInfo)`, steps until the tolerance is met. Not
            differentiable in reverse mode; with `has_aux=True` it is a `solve` of
            `metaopt.implicit.minimise` where the solution is a zero of the gradient.
        residual: `(problem, params) -> tree like params`, zero at solutions.
    """

    init: Callable[[PyTree], Any]
    update: Callable[[Callable, Any], Any]
    run: Callable[[Callable, PyTree], tuple[PyTree, SolverInfo]]
    residual: Callable[[Callable, PyTree], PyTree]


@checked
def implicit_solution(
    problem: Callable[[PyTree, PyTree], Any],
    solver: FirstOrderSolver,
    *,
    linear_solver: LinearSolver | None = None,
    on_failure: OnFailure = "nan",
) -> Solution:
    """The solution of a convex problem as a differentiable function of what determines it.

    Args:
        problem: `(params, theta) -> ` what the solver takes: a loss, or the value of an operator.
            It and the settings of the solver may close over traced values; derivatives with
            respect to them are right too.
        solver: must find solutions, not averages of what leads there.
        linear_solver: as `solver` of `metaopt.implicit.root`.
        on_failure: as there. Static.

    Returns:
        `(theta, start) -> (params, SolverInfo)`.

    Raises:
        ValueError: if an option is unknown.
    """

    def solution(theta, start):
        def residual(params, theta):
            return solver.residual(lambda p: problem(p, theta), params)

        def solve(_, params):
            return solver.run(lambda p: problem(p, theta), params)

        found = root(residual, solve, solver=linear_solver, has_aux=True, on_failure=on_failure)
        return found(theta, strong(start))

    return solution


def runner(init, update, params_of, tol, max_steps: int):
    """Updates until `state.error <= tol`, `state.count == max_steps` or a NaN."""

    def run(problem, params):
        def going(state):
            return (state.count < max_steps) & (state.error > tol)

        state = jax.lax.while_loop(going, partial(update, problem), init(params))
        ended = jnp.where(state.error <= tol, int(Status.OK), int(Status.MAX_STEPS))
        status = jnp.where(jnp.isfinite(state.error), ended, int(Status.NONFINITE))
        return params_of(state), SolverInfo(state.error, state.count, status.astype(jnp.int32))

    return run


def check_run(name: str, tol: Scalar, max_steps: int) -> None:
    """Raises ValueError for settings under which a run has no end or no beginning."""
    if known(tol) and tol < 0:
        raise ValueError(f"{name}: tol must not be negative, got {tol}; 0 takes max_steps steps.")
    if max_steps < 1:
        raise ValueError(f"{name}: max_steps must be at least 1, got {max_steps}.")


def check_positive(name: str, **settings) -> None:
    """Raises ValueError for numbers that are known and not above 0."""
    for setting, value in settings.items():
        if known(value) and not value > 0:
            raise ValueError(f"{name}: {setting} must be positive, got {value}.")


def strong(params: PyTree) -> PyTree:
    """Arrays with fixed dtypes, as a loop carries them."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), params)


def scalar_dtype(params: PyTree):
    """The dtype that scalars are computed in: float32 or the widest of the leaves."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


def move(x: PyTree, scale, direction: PyTree) -> PyTree:
    """X + scale · direction, in the dtypes of x."""
    return jax.tree.map(lambda a, d: (a + scale * d).astype(a.dtype), x, direction)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """X − y, in the dtypes of x."""
    return move(x, -1, y)


def dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """Σ x·y in `scalar_dtype(x)`."""
    dtype = scalar_dtype(x)
    products = jax.tree.map(lambda a, b: jnp.sum(a.astype(dtype) * b.astype(dtype)), x, y)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype))


def length(x: PyTree) -> Float[Array, ""]:
    """The Euclidean norm, as a constant: errors are reported, not differentiated."""
    return global_norm(jax.lax.stop_gradient(x))
