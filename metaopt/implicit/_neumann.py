"""Truncated Neumann series.

    u = a · Σ_{q=0}^{Q} (I − a A)^q b        →  A⁻¹ b  for  0 < a A < 2

The error is (I − a A)^{Q+1} A⁻¹ b, so for a definite A the answer is always short. At a stationary
point it equals backpropagation through the last Q+1 gradient steps of size a. Lorraine et al. 2020,
arXiv:1911.02590, algorithm 3; Q = 0 is the inverse learning rate of T1-T2 (Luketina et al. 2016).
"""

import jax
import jax.numpy as jnp

from metaopt.core import Scalar, checked
from metaopt.implicit import _vector as vector
from metaopt.implicit._contracts import (
    LinearSolver,
    Status,
    finite_status,
    make_info,
    relative_residual,
)


@checked
def neumann(*, num_terms: int, step_size: Scalar) -> LinearSolver:
    """A truncated Neumann series, for operators with ‖I − step_size A‖ < 1.

    Args:
        num_terms: Q, the products with A. Static.
        step_size: a, usually the inner learning rate; below 2 / λ_max(A). Traced.

    Returns:
        A solver of fixed cost that ignores `start`. Terms that have grown are BREAKDOWN.

    Raises:
        ValueError: if `num_terms` is negative.
    """
    if not isinstance(num_terms, int) or num_terms < 0:
        raise ValueError(f"neumann: num_terms must be at least 0, got {num_terms!r}.")

    def solve(operator, b, start=None, key=None):
        del start, key

        def step(_, carry):
            term, total = carry
            term = vector.add_scaled(term, -step_size, operator.apply(term))
            return term, vector.add_scaled(total, 1, term)

        term, total = jax.lax.fori_loop(0, num_terms, step, (b, b))
        u = vector.scaled(step_size, total)
        grown = vector.norm(term) > (1 + 1e-3) * vector.norm(b)
        status = jnp.where(grown, int(Status.BREAKDOWN), int(Status.OK))
        residual = relative_residual(operator, u, b)
        return u, make_info(residual, num_terms, num_terms, finite_status(u, status))

    return LinearSolver(solve)
