"""Stabilised biconjugate gradients (BiCGStab) for operators that are not symmetric.

    ρ = r̂·r,  p ← r + (ρ/ρ₋)(α/ω)(p − ω v),   v = A p,  α = ρ / r̂·v,   s = r − α v,
    t = A s,  ω = t·s / t·t,    u ← u + α p + ω s,   r ← s − ω t,         r̂ = r₀

with p and s replaced by M⁻¹ p and M⁻¹ s where u and A see them. Unlike `gmres` it keeps a fixed,
small number of vectors; its residual may oscillate. Van der Vorst 1992, doi:10.1137/0913035.

Written here because lineax's version takes negative coefficients for a breakdown in float32, and
divides 0 by 0 where s vanishes, which is a solution.
"""

import jax
import jax.numpy as jnp

from metaopt import tree
from metaopt.core import Scalar, checked
from metaopt.implicit import _vector as vector
from metaopt.implicit._cg import Tolerance, begin, check_iterative, step_limit
from metaopt.implicit._contracts import (
    LinearSolver,
    Operator,
    Preconditioner,
    Status,
    finite_status,
    make_info,
    relative_residual,
)


@checked
def bicgstab(
    *,
    rtol: Tolerance = "auto",
    atol: Scalar = 0.0,
    max_steps: int | None = None,
    preconditioner: Preconditioner | None = None,
) -> LinearSolver:
    """Stabilised biconjugate gradients, for any square operator.

    Args:
        rtol: relative tolerance, at least ε, or "auto": 10 ε^¾. Traced.
        atol: absolute tolerance, in units of b. Traced.
        max_steps: most steps, of two products each; None: ten times the size of b, at most 1,000.
            Static.
        preconditioner: as in `cg`, not necessarily definite.

    Returns:
        A solver that uses `start`. A coefficient that cannot be computed away from a solution is
        BREAKDOWN, with the last iterate.

    Raises:
        ValueError: for a bad `rtol` or `max_steps`.
    """
    check_iterative("bicgstab", rtol, max_steps)

    def solve(operator, b, start=None, key=None):
        precondition = None if preconditioner is None else preconditioner(operator, b, key)
        relative = jnp.maximum(vector.relative_tolerance(rtol, b), vector.epsilon(b))
        tolerance = jnp.maximum(relative * vector.norm(b), atol)
        limit = step_limit(max_steps, b)
        u, r = begin(operator, b, start)
        u, size, steps, broken = _iterate(operator, precondition, u, r, tolerance, limit)
        residual = relative_residual(operator, u, b)
        met = (size <= tolerance) & (residual * vector.norm(b) <= 10 * tolerance)
        ran_out = (size > tolerance) & ~broken
        failure = jnp.where(ran_out, int(Status.MAX_STEPS), int(Status.BREAKDOWN))
        status = finite_status((u, size), jnp.where(met, int(Status.OK), failure))
        products = 2 * steps + (0 if start is None else 1)
        return u, make_info(residual, steps, products, status)

    return LinearSolver(solve)


def _iterate(operator: Operator, precondition, u, r, tolerance, limit):
    """Steps until one of the reasons to stop; (u, ‖r‖, steps, whether it broke down)."""
    precondition = (lambda x: x) if precondition is None else precondition
    shadow, zero = r, vector.zeros_like(r)
    one = jnp.ones((), vector.wide_dtype(r))

    def proceed(carry):
        *_, size, step, broken = carry
        return (size > tolerance) & (step < limit) & ~broken

    def advance(carry):
        u, r, p, v, (rho, alpha, omega), size, step, _ = carry
        rho_next = vector.dot(shadow, r)
        beta = rho_next / rho * (alpha / omega)
        p = vector.add_scaled(r, beta, vector.add_scaled(p, -omega, v))
        x = precondition(p)
        v = operator.apply(x)
        alpha = rho_next / vector.dot(shadow, v)
        s = vector.add_scaled(r, -alpha, v)
        z = precondition(s)
        t = operator.apply(z)
        omega = vector.ratio(vector.dot(t, s), vector.dot(t, t))
        u_next = vector.add_scaled(vector.add_scaled(u, alpha, x), omega, z)
        r_next = vector.add_scaled(s, -omega, t)
        size_next = vector.norm(r_next)
        broken = ~jnp.isfinite(size_next)
        u, r = tree.where(broken, (u, r), (u_next, r_next))
        size = jnp.where(broken, size, size_next)
        return u, r, p, v, (rho_next, alpha, omega), size, step + 1, broken

    carry = (
        u, r, zero, zero, (one, one, one), vector.norm(r), jnp.zeros((), jnp.int32),
        jnp.array(False),
    )  # fmt: skip
    u, *_, size, steps, broken = jax.lax.while_loop(proceed, advance, carry)
    return u, size, steps, broken
