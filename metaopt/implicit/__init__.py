"""Implicit differentiation: linear solvers, hypergradients, differentiable solutions."""

from metaopt.implicit._bicgstab import bicgstab
from metaopt.implicit._cg import Tolerance, cg
from metaopt.implicit._contracts import (
    LinearSolver,
    Operator,
    Preconditioner,
    SolveInfo,
    Status,
    Structure,
    seeded,
)
from metaopt.implicit._dense import dense
from metaopt.implicit._gmres import gmres
from metaopt.implicit._hypergradient import HyperInfo, hypergradient
from metaopt.implicit._identity import identity
from metaopt.implicit._jacobi import jacobi
from metaopt.implicit._neumann import neumann
from metaopt.implicit._normal_cg import normal_cg
from metaopt.implicit._nystrom import Sketch, nystrom, nystrom_preconditioner
from metaopt.implicit._root import OnFailure, Solution, fixed_point, minimise, root

__all__ = [
    "HyperInfo",
    "LinearSolver",
    "OnFailure",
    "Operator",
    "Preconditioner",
    "Sketch",
    "Solution",
    "SolveInfo",
    "Status",
    "Structure",
    "Tolerance",
    "bicgstab",
    "cg",
    "dense",
    "fixed_point",
    "gmres",
    "hypergradient",
    "identity",
    "jacobi",
    "minimise",
    "neumann",
    "normal_cg",
    "nystrom",
    "nystrom_preconditioner",
    "root",
    "seeded",
]
