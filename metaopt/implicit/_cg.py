"""Preconditioned conjugate gradients, with a flag for negative curvature.

    r₀ = b − A u₀,  p₀ = z₀ = M⁻¹ r₀;    αₖ = rₖ·zₖ / pₖ·A pₖ,    u ← u + αₖ pₖ,  r ← r − αₖ A pₖ,
    zₖ₊₁ = M⁻¹ rₖ₊₁,    pₖ₊₁ = zₖ₊₁ + (rₖ₊₁·zₖ₊₁ / rₖ·zₖ) pₖ

Hestenes and Stiefel 1952, doi:10.6028/jres.049.044; for hypergradients Pedregosa 2016,
arXiv:1602.02355, with warm starts Grazzi et al. 2020, arXiv:2006.16218.

Written here because lineax's version trusts the promise that A is definite: it reports no negative
curvature (Hessians of training losses have it) and its tolerance is per entry, unmeetable where
an entry of b is zero.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from metaopt import tree
from metaopt.core import Scalar, checked
from metaopt.implicit import _vector as vector
from metaopt.implicit._contracts import (
    LinearSolver,
    Operator,
    Preconditioner,
    Status,
    damped,
    finite_status,
    make_info,
    relative_residual,
)

Tolerance = Literal["auto"] | Scalar


@checked
def cg(
    *,
    rtol: Tolerance = "auto",
    atol: Scalar = 0.0,
    max_steps: int | None = None,
    damping: Scalar | None = None,
    preconditioner: Preconditioner | None = None,
) -> LinearSolver:
    """Conjugate gradients for symmetric positive definite operators.

    Stops at ‖r‖ <= max(rtol ‖b‖, atol, ε ‖b‖), after `max_steps`, or where a direction has
    p·Ap <= 0 (up to rounding), with the last iterate and status INDEFINITE. A residual that drifted
    from its recurrence by more than ten tolerances is BREAKDOWN.

    Args:
        rtol: relative tolerance, or "auto": 10 ε^¾. Zero, with `atol` zero: exactly `max_steps`
            steps, fewer only where the residual is down to rounding. Traced.
        atol: absolute tolerance, in units of b. Traced.
        max_steps: most products with A; None: ten times the size of b, at most 1,000. Static.
        damping: solves (A + damping I) u = b. Traced; None for none.
        preconditioner: builds z = M⁻¹ r from `(operator, b, key)`, with M symmetric positive
            definite, see `jacobi` and `nystrom_preconditioner`; it is given the damped operator.

    Returns:
        A solver for "symmetric" and "psd" operators that uses `start`.

    Raises:
        ValueError: for a bad `rtol` or `max_steps`.
    """
    check_iterative("cg", rtol, max_steps)

    def solve(operator, b, start=None, key=None):
        operator = damped(operator, damping)
        precondition = None if preconditioner is None else preconditioner(operator, b, key)
        tolerance = jnp.maximum(vector.relative_tolerance(rtol, b) * vector.norm(b), atol)
        u, r = begin(operator, b, start)
        # Below rounding there is no curvature left to measure, only 0 / 0.
        enough = jnp.maximum(tolerance, vector.epsilon(b) * vector.norm(b))
        u, rr, steps, indefinite = _iterate(
            operator, precondition, u, r, enough, step_limit(max_steps, b)
        )
        residual = relative_residual(operator, u, b)
        drifted = residual * vector.norm(b) > 10 * tolerance
        unmet = jnp.where(rr > enough**2, int(Status.MAX_STEPS), int(Status.BREAKDOWN))
        ended = jnp.where((tolerance > 0) & ((rr > enough**2) | drifted), unmet, int(Status.OK))
        status = jnp.where(indefinite, int(Status.INDEFINITE), ended)
        products = steps if start is None else steps + 1
        return u, make_info(residual, steps, products, finite_status((u, rr), status))

    return LinearSolver(solve, "symmetric")


def _iterate(operator: Operator, precondition, u, r, tolerance, limit):
    """Steps until one of the reasons to stop; (u, r·r, steps, whether the curvature failed)."""
    small = vector.epsilon(r)
    z = r if precondition is None else precondition(r)
    rr = vector.dot(r, r)

    def proceed(carry):
        _, _, _, rr, _, step, indefinite = carry
        return (rr > tolerance**2) & (step < limit) & ~indefinite & jnp.isfinite(rr)

    def advance(carry):
        u, r, p, rr, rz, step, _ = carry
        a_p = operator.apply(p)
        curvature = vector.dot(p, a_p)
        bound = small * jnp.sqrt(vector.dot(p, p) * vector.dot(a_p, a_p))
        # Written so that NaN counts as failure.
        bad = ~(curvature > bound)
        alpha = jnp.where(bad, 0.0, rz / jnp.where(bad, 1.0, curvature))
        u = tree.where(bad, u, vector.add_scaled(u, alpha, p))
        r = tree.where(bad, r, vector.add_scaled(r, -alpha, a_p))
        z = r if precondition is None else precondition(r)
        rr = vector.dot(r, r)
        rz_next = rr if precondition is None else vector.dot(r, z)
        p = vector.add_scaled(z, rz_next / rz, p)
        return u, r, p, rr, rz_next, step + 1, bad

    rz = rr if precondition is None else vector.dot(r, z)
    carry = (u, r, z, rr, rz, jnp.zeros((), jnp.int32), jnp.array(False))
    u, _, _, rr, _, steps, indefinite = jax.lax.while_loop(proceed, advance, carry)
    return u, rr, steps, indefinite


def begin(operator: Operator, b, start):
    """The first iterate and its residual."""
    if start is None:
        return vector.zeros_like(b), b
    start = tree.cast_like(start, b)
    return start, vector.subtract(b, operator.apply(start))


def step_limit(max_steps: int | None, b) -> int:
    """`max_steps`, or its default."""
    return min(10 * vector.size(b), 1000) if max_steps is None else max_steps


def check_iterative(name: str, rtol, max_steps: int | None) -> None:
    """Raises ValueError for settings of an iterative solver that make no sense."""
    if isinstance(rtol, str) and rtol != "auto":
        raise ValueError(f"{name}: rtol={rtol!r} is unknown; give a number or 'auto'.")
    if isinstance(rtol, int | float) and not rtol >= 0:
        raise ValueError(f"{name}: rtol must not be negative, got {rtol}.")
    if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
        raise ValueError(f"{name}: max_steps must be at least 1, got {max_steps!r}.")
