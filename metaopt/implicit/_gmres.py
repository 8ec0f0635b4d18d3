"""Generalised minimal residuals (GMRES) with restarts, by lineax.

    u ∈ u₀ + span{r₀, A r₀, …, A^{m-1} r₀}  that minimises ‖b − A u‖, then again from there

Saad and Schultz 1986, doi:10.1137/0907058. lineax's tolerance is per entry; here the system is
scaled to ‖b‖ = 1 and measured in the Euclidean norm. What it reports about the end of a solve is
replaced by the residual that was reached.
"""

from typing import Any

import jax
import jax.numpy as jnp

from metaopt import tree
from metaopt.core import checked
from metaopt.implicit import _vector as vector
from metaopt.implicit._cg import Tolerance, check_iterative, step_limit
from metaopt.implicit._contracts import (
    LinearSolver,
    Preconditioner,
    Status,
    finite_status,
    make_info,
    relative_residual,
)


@checked
def gmres(
    *,
    rtol: Tolerance = "auto",
    restart: int = 20,
    max_steps: int | None = None,
    preconditioner: Preconditioner | None = None,
) -> LinearSolver:
    """GMRES with restarts, for any square operator.

    Args:
        rtol: tolerance on ‖b − A u‖ / ‖b‖, at least ε, or "auto": 10 ε^¾. Traced.
        restart: products between restarts. Static.
        max_steps: most restarts; None: ten times the size of b, at most 1,000. Static.
        preconditioner: as in `cg`, not necessarily definite.

    Returns:
        A solver that uses `start`; a step is one restart.

    Raises:
        ValueError: for a bad `rtol`, `restart` or `max_steps`.
    """
    check_iterative("gmres", rtol, max_steps)
    if not isinstance(restart, int) or restart < 1:
        raise ValueError(f"gmres: restart must be at least 1, got {restart!r}.")

    def solve(operator, b, start=None, key=None):
        import lineax

        tolerance: Any = jnp.maximum(vector.relative_tolerance(rtol, b), vector.epsilon(b))
        method = lineax.GMRES(
            rtol=tolerance,
            atol=tolerance,
            norm=vector.norm,
            max_steps=step_limit(max_steps, b),
            restart=restart,
        )
        shapes = jax.eval_shape(lambda: b)
        scale = vector.norm(b)
        scale = jnp.where(scale > 0, scale, 1)
        options = {}
        if start is not None:
            options["y0"] = vector.scaled(1 / scale, tree.cast_like(start, b))
        if preconditioner is not None:
            precondition = preconditioner(operator, b, key)
            options["preconditioner"] = lineax.FunctionLinearOperator(precondition, shapes)
        solution = lineax.linear_solve(
            lineax.FunctionLinearOperator(operator.apply, shapes),
            vector.scaled(1 / scale, b),
            method,
            options=options,
            throw=False,
        )
        zero = vector.zeros_like(b)
        u = tree.where(vector.norm(b) == 0, zero, vector.scaled(scale, solution.value))
        residual = relative_residual(operator, u, b)
        steps = solution.stats["num_steps"]
        ran_out = solution.result == lineax.RESULTS.max_steps_reached
        failure = jnp.where(ran_out, int(Status.MAX_STEPS), int(Status.BREAKDOWN))
        status = jnp.where(residual <= 10 * tolerance, int(Status.OK), failure)
        count = steps * (min(restart, vector.size(b)) + 1)
        return u, make_info(residual, steps, count, finite_status(u, status))

    return LinearSolver(solve)
