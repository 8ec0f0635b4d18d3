"""Conjugate gradients on the normal equations.

    Aᵀ A u = Aᵀ b

For operators that are not symmetric, and for singular ones: from a zero start it finds the
least-squares solution of least norm. The condition number is squared, so a definite system needs
many more products than `cg` and loses digits. Hestenes and Stiefel 1952, §10.
"""

from metaopt.core import Scalar, checked
from metaopt.implicit._cg import Tolerance, cg, check_iterative
from metaopt.implicit._contracts import LinearSolver, Operator, relative_residual, transposed


@checked
def normal_cg(
    *,
    rtol: Tolerance = "auto",
    atol: Scalar = 0.0,
    max_steps: int | None = None,
    damping: Scalar | None = None,
) -> LinearSolver:
    """Conjugate gradients for any square operator, definite or not.

    Args:
        rtol: relative tolerance on ‖Aᵀ(b − A u)‖, or "auto": 10 ε^¾. Traced.
        atol: absolute tolerance on the same. Traced.
        max_steps: most steps, of two products each; None: ten times the size of b, at most 1,000.
            Static.
        damping: solves (AᵀA + damping I) u = Aᵀb, as Levenberg and Marquardt do. Traced; None for
            none.

    Returns:
        A solver that uses `start`. Its `residual` is that of A u = b: it stays large where b is
        outside A's range, with status OK.

    Raises:
        ValueError: for a bad `rtol` or `max_steps`.
    """
    check_iterative("normal_cg", rtol, max_steps)
    inner = cg(rtol=rtol, atol=atol, max_steps=max_steps, damping=damping)

    def solve(operator, b, start=None, key=None):
        transpose = transposed(operator, b)
        normal = Operator(lambda x: transpose.apply(operator.apply(x)), "psd")
        u, info = inner.solve(normal, transpose.apply(b), start, key)
        return u, info._replace(
            residual=relative_residual(operator, u, b), num_products=2 * info.num_products + 1
        )

    return LinearSolver(solve)
