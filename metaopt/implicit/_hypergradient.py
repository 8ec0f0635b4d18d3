"""The implicit hypergradient, in the open.

    A = (∂F/∂params)ᵀ,    A u = ∇_params f,        dF/dtheta = ∇_theta f − (∂F/∂theta)ᵀ u

at a point where F(params, theta) = 0, usually F = ∇_params of an inner loss. No custom rule: the
warm start `u` belongs to the caller, and everything that can go wrong is reported. One
linearisation of F serves all products, and one pullback gives A u and the mixed product together.
Bengio 2000, doi:10.1162/089976600300015187; Pedregosa 2016, arXiv:1602.02355; Blondel et al. 2021,
arXiv:2105.15183.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metaopt.implicit import _vector as vector
from metaopt.implicit._cg import cg
from metaopt.implicit._contracts import (
    LinearSolver,
    Operator,
    Structure,
    check_structure,
    frozen_keys,
)


class HyperInfo(NamedTuple):
    """How trustworthy a hypergradient is.

    Attributes:
        u: the solution of the linear system, to start the next one from.
        residual: ‖A u − ∇_params f‖ / ‖∇_params f‖, of the equation without damping: truncation,
            damping and low-rank models all show.
        stationarity: ‖F(params, theta)‖; the error of the hypergradient is proportional to it.
        num_steps: iterations of the linear solver.
        num_products: its products with A.
        status: how it ended, one of `Status`.
    """

    u: PyTree
    residual: Float[Array, ""]
    stationarity: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_products: Int[Array, ""]
    status: Int[Array, ""]


def hypergradient(
    outer: Callable[[PyTree, PyTree], Float[Array, ""]],
    optimality: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    theta: PyTree,
    *,
    solver: LinearSolver | None = None,
    start: PyTree | None = None,
    structure: Structure = "symmetric",
) -> tuple[Float[Array, ""], PyTree, HyperInfo]:
    """The total derivative of the outer loss at a solution of the optimality condition.

    Randomness must be frozen: close both functions over their batches and keys.

    Args:
        outer: `(params, theta) -> scalar`.
        optimality: `(params, theta) -> tree like params`, zero at the solution: `jax.grad` of an
            inner loss, or any other residual.
        params: the solution.
        theta: any pytree; integers and keys in it are constants and have float0 gradients.
        solver: of the linear system; None: `cg()`. Randomised ones go through `seeded`.
        start: a guess of u, such as the last `HyperInfo.u`. At convergence the result does not
            depend on it.
        structure: of ∂F/∂params: "symmetric" for a gradient, else "general". Static.

    Returns:
        The outer loss, the hypergradient in the structure of theta, and a report.

    Raises:
        ValueError: if the solver cannot treat the structure, F is not shaped like params, or the
            outer loss is no scalar.
    """
    solver = cg() if solver is None else solver
    check_structure("hypergradient", solver, structure)
    thaw = frozen_keys(theta)
    value, outer_pullback = jax.vjp(outer, params, thaw())
    if jnp.shape(value):
        raise ValueError(
            f"hypergradient: the outer loss has shape {jnp.shape(value)}; it must be a scalar: "
            "take a mean or a sum."
        )
    grad_params, grad_theta = outer_pullback(jnp.ones_like(value))
    residual, pullback = jax.vjp(optimality, params, thaw())
    check_residual("hypergradient", residual, params)
    operator = Operator(lambda u: pullback(u)[0], structure)
    u, info = solver.solve(operator, grad_params, start)
    a_u, mixed = pullback(u)
    grad = jax.tree.map(_subtract, grad_theta, mixed)
    gap = vector.norm(vector.subtract(a_u, grad_params))
    report = HyperInfo(
        u,
        vector.ratio(gap, vector.norm(grad_params)),
        vector.norm(residual),
        info.num_steps,
        info.num_products,
        info.status,
    )
    return value, grad, report


def check_residual(name: str, residual: PyTree, params: PyTree) -> None:
    """Raises ValueError unless an optimality residual is shaped like what it determines."""
    shapes = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
        for tree in (residual, params)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name}: the optimality residual has {shapes[0]}, but params have {shapes[1]}; it "
            "needs one equation per unknown (of a scalar inner loss, pass jax.grad)."
        )


def _subtract(x, y):
    return x if x.dtype == jax.dtypes.float0 else x - y
