"""A multiple of the identity in place of the inverse.

    u = scale · b

With the inner learning rate as the scale it is T1-T2 (Luketina et al. 2016, arXiv:1511.06727). Its
direction is useful where A is near a multiple of the identity.
"""

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
def identity(*, scale: Scalar = 1.0) -> LinearSolver:
    """No products at all.

    Args:
        scale: what stands for A⁻¹. Traced.

    Returns:
        A solver that ignores `start`; its residual says how far from the truth it is.
    """

    def solve(operator, b, start=None, key=None):
        del start, key
        u = vector.scaled(scale, b)
        residual = relative_residual(operator, u, b)
        return u, make_info(residual, 0, 0, finite_status(u, int(Status.OK)))

    return LinearSolver(solve)
