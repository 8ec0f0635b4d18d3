"""What the linear solvers share: an operator, a solver, a report.

The sign convention of the whole package is the u-form: with F(params, theta) = 0 the optimality
condition and f the outer loss,

    (∂F/∂params)ᵀ u = ∇_params f,        hypergradient = ∇_theta f − (∂F/∂theta)ᵀ u
"""

import enum
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metaopt.core import Scalar, checked
from metaopt.implicit import _vector as vector

Structure = Literal["general", "symmetric", "psd"]


class Status(enum.IntEnum):
    """How a linear solve ended; everything but `OK` says that its answer should not be trusted."""

    OK = 0
    """The tolerance was met, or there is none: a method of fixed cost ran to its end."""
    MAX_STEPS = 1
    """The steps ran out first."""
    INDEFINITE = 2
    """The operator is not positive definite: some p has p·Ap <= 0."""
    BREAKDOWN = 3
    """The method stopped away from a solution: a singular operator, or a diverging series."""
    NONFINITE = 4
    """The answer has NaN or inf."""


class Operator(NamedTuple):
    """A square linear operator on pytrees.

    Attributes:
        apply: `(x) -> A x`, in the structure, shapes and dtypes of x.
        structure: "general", "symmetric" or "psd" (symmetric and positive semidefinite), as
            promised by whoever built it.
    """

    apply: Callable[[PyTree], PyTree]
    structure: Structure = "general"


class SolveInfo(NamedTuple):
    """How a linear solve went.

    Attributes:
        residual: ‖b − A u‖ / ‖b‖, of the system that was solved (damping included), computed from
            its definition; compiled programs that do not use it do not pay for it.
        num_steps: iterations.
        num_products: products with A or its transpose, without those that only serve this report.
        status: one of `Status`.
    """

    residual: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_products: Int[Array, ""]
    status: Int[Array, ""]


class LinearSolver(NamedTuple):
    """Solves A u = b.

    Attributes:
        solve: `(operator, b, start=None, key=None) -> (u, SolveInfo)`. `start` is a guess of u
            that solvers with a fixed cost ignore; `key` is for those that draw random numbers.
        requires: the weakest structure of operators that it accepts.
    """

    solve: Callable[..., tuple[PyTree, SolveInfo]]
    requires: Structure = "general"


Preconditioner = Callable[[Operator, PyTree, PRNGKeyArray | None], Callable[[PyTree], PyTree]]


@checked
def seeded(solver: LinearSolver, key: PRNGKeyArray) -> LinearSolver:
    """The solver with its random numbers drawn from `key`, the same ones in every solve.

    Args:
        solver: any; those that draw nothing stay what they are.
        key: traced.
    """
    fixed = frozen_keys(key)

    def solve(operator, b, start=None, key=None):
        del key
        return solver.solve(operator, b, start, fixed())

    return solver._replace(solve=solve)


def frozen_keys(tree: PyTree) -> Callable[[], PyTree]:
    """The tree as a function that makes its keys anew from their bits, each time it is called.

    An optimality condition is one fixed function: all evaluations draw the same numbers on purpose.
    """
    leaves, treedef = jax.tree.flatten(tree)
    thaw = [_frozen_leaf(leaf) for leaf in leaves]
    return lambda: treedef.unflatten([make() for make in thaw])


def _frozen_leaf(x):
    if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return lambda: x
    data, impl = jax.random.key_data(x), jax.random.key_impl(x)
    return lambda: jax.random.wrap_key_data(data, impl=impl)


def check_structure(name: str, solver: LinearSolver, structure: Any) -> None:
    """Raises ValueError unless the solver accepts operators of this structure."""
    order = get_args(Structure)
    if structure not in order:
        raise ValueError(f"{name}: structure={structure!r} is unknown; choose from {order}.")
    if order.index(structure) < order.index(solver.requires):
        raise ValueError(
            f"{name}: this solver needs a {solver.requires} operator, but structure="
            f"{structure!r}; use normal_cg(), gmres(), bicgstab() or dense()."
        )


def transposed(operator: Operator, like: PyTree) -> Operator:
    """The transposed operator; a symmetric one is its own."""
    if operator.structure != "general":
        return operator
    transpose = jax.linear_transpose(operator.apply, like)
    return Operator(lambda x: transpose(x)[0], operator.structure)


def damped(operator: Operator, damping: Scalar | None) -> Operator:
    """A + damping · I."""
    if damping is None:
        return operator
    return operator._replace(apply=lambda x: vector.add_scaled(operator.apply(x), damping, x))


def relative_residual(operator: Operator, u: PyTree, b: PyTree) -> Float[Array, ""]:
    """‖b − A u‖ / ‖b‖, and 0 for b = 0 and u = 0."""
    return vector.ratio(vector.norm(vector.subtract(b, operator.apply(u))), vector.norm(b))


def make_info(residual, num_steps, num_products, status) -> SolveInfo:
    """A report with the dtypes of the contract."""
    integers = [jnp.asarray(x, jnp.int32) for x in (num_steps, num_products, status)]
    return SolveInfo(residual, *integers)


def finite_status(u: PyTree, status: Int[Array, ""] | int) -> Int[Array, ""]:
    """The status, or NONFINITE if the answer is not finite."""
    finite = jnp.isfinite(vector.norm(u))
    return jnp.where(finite, jnp.asarray(status, jnp.int32), int(Status.NONFINITE))
