"""The matrix itself, one product per unknown, and a factorisation by lineax.

Exact to rounding, O(n²) memory: for oracles and for small systems (below about 500 unknowns).
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metaopt.core import checked
from metaopt.implicit import _vector as vector
from metaopt.implicit._contracts import (
    LinearSolver,
    Operator,
    Status,
    make_info,
    relative_residual,
)


@checked
def dense(*, well_posed: bool = True) -> LinearSolver:
    """Builds the matrix and factorises it: Cholesky for "psd" operators, else LU.

    Args:
        well_posed: False: the least-squares solution of least norm, for singular operators, by a
            singular value decomposition. Static.

    Returns:
        A solver that ignores `start`. A singular matrix is BREAKDOWN, one that was called "psd" and
        is not is INDEFINITE.
    """

    def solve(operator, b, start=None, key=None):
        del start, key
        import lineax

        rhs, unravel = ravel_pytree(b)
        matrix = as_matrix(operator, b)
        psd = operator.structure == "psd" and well_posed
        tags = lineax.positive_semidefinite_tag if psd else ()
        if not well_posed:
            method: lineax.AbstractLinearSolver = lineax.SVD()
        else:
            method = lineax.Cholesky() if psd else lineax.LU()
        solution = lineax.linear_solve(
            lineax.MatrixLinearOperator(matrix, tags), rhs, method, throw=False
        )
        u = unravel(solution.value)
        residual = relative_residual(operator, u, b)
        met = residual <= vector.epsilon(b) ** 0.5 if well_posed else jnp.isfinite(residual)
        failure = int(Status.INDEFINITE if psd else Status.BREAKDOWN)
        status = jnp.where(met, int(Status.OK), failure)
        return u, make_info(residual, 1, rhs.size, status)

    return LinearSolver(solve)


def as_matrix(operator: Operator, like) -> jax.Array:
    """The operator's matrix in the coordinates of the ravelled tree."""
    flat, unravel = ravel_pytree(like)
    columns = jax.vmap(lambda e: ravel_pytree(operator.apply(unravel(e)))[0])
    return columns(jnp.eye(flat.size, dtype=flat.dtype)).T
