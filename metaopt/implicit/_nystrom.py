"""Nyström approximation of the operator, inverted in closed form.

    A ≈ A_k = C W⁺ Cᵀ,    C = A S,  W = Sᵀ A S,        u = (A_k + ρ I)⁻¹ b

where S are k columns of the identity, or k Gaussian directions: k products, no iteration. Hataya
and Yamada 2023, arXiv:2302.09726, who write the inverse by Woodbury's identity,
b/ρ − C (W + CᵀC/ρ)⁻¹ Cᵀ b / ρ². Here A_k = U Λ Uᵀ and

    u = U (Λ + ρ)⁻¹ Uᵀ b + (b − U Uᵀ b) / ρ,

the same numbers, with a hundred times less rounding in float32.

A is inverted as if it were of rank k plus ρ: where it has more, the answer explodes like 1/ρ. Fold
a known penalty into ρ, or use the approximation as a preconditioner (Frangella, Tropp and Udell
2021, arXiv:2110.02820, eq. 1.3), which does not bias the answer:

    M⁻¹ = (λ_k + ρ) U (Λ + ρ)⁻¹ Uᵀ + (I − U Uᵀ)
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metaopt.core import Scalar, checked
from metaopt.implicit import _vector as vector
from metaopt.implicit._contracts import (
    LinearSolver,
    Preconditioner,
    Status,
    finite_status,
    make_info,
    relative_residual,
)

Sketch = Literal["columns", "gaussian"]


@checked
def nystrom(*, rank: int, damping: Scalar, sketch: Sketch = "columns") -> LinearSolver:
    """Inverts a low-rank model of a positive semidefinite operator plus damping.

    Args:
        rank: k, the products with A, at most the number of unknowns. Static.
        damping: ρ. Traced.
        sketch: "columns" of A or its products with "gaussian" directions. Static.

    Returns:
        A solver of fixed cost for "symmetric" and "psd" operators. It draws its columns from `key`
        (see `seeded`) and ignores `start`; a W that is not positive semidefinite is INDEFINITE.

    Raises:
        ValueError: for a bad `rank` or `sketch`, and in `solve` without a key.
    """
    _check("nystrom", rank, sketch)

    def solve(operator, b, start=None, key=None):
        del start
        basis, eigenvalues, definite = _factor("nystrom", operator, b, key, rank, sketch)
        flat, unravel = ravel_pytree(b)
        inside = basis.T @ flat
        rho = jnp.asarray(damping, flat.dtype)
        u = unravel(basis @ (inside / (eigenvalues + rho)) + (flat - basis @ inside) / rho)
        damped = operator._replace(apply=lambda x: vector.add_scaled(operator.apply(x), damping, x))
        status = jnp.where(definite, int(Status.OK), int(Status.INDEFINITE))
        info = make_info(relative_residual(damped, u, b), 1, rank, finite_status(u, status))
        return u, info

    return LinearSolver(solve, "symmetric")


@checked
def nystrom_preconditioner(
    *, rank: int, damping: Scalar, sketch: Sketch = "gaussian"
) -> Preconditioner:
    """A preconditioner that deflates the largest eigenvalues, for `cg(preconditioner=...)`.

    Args:
        rank: k, the products with A. Static.
        damping: ρ, about the size of the eigenvalues that are not captured. Traced.
        sketch: "columns" or "gaussian". Static.

    Returns:
        A preconditioner that needs a key.

    Raises:
        ValueError: as in `nystrom`.
    """
    _check("nystrom_preconditioner", rank, sketch)

    def build(operator, b, key):
        basis, eigenvalues, _ = _factor("nystrom_preconditioner", operator, b, key, rank, sketch)
        rho = jnp.asarray(damping, basis.dtype)
        gain = (jnp.min(eigenvalues) + rho) / (eigenvalues + rho)

        def precondition(r):
            flat, unravel = ravel_pytree(r)
            return unravel(flat + basis @ ((gain - 1) * (basis.T @ flat)))

        return precondition

    return build


def _factor(name, operator, b, key, rank, sketch):
    """Orthonormal U, Λ of the model, and whether W was positive semidefinite."""
    flat, unravel = ravel_pytree(b)
    if rank > flat.size:
        raise ValueError(f"{name}: rank={rank} exceeds the {flat.size} unknowns; lower it.")
    if key is None:
        raise ValueError(f"{name}: random columns need a key; wrap the solver in seeded().")
    if sketch == "columns":
        chosen = jax.random.choice(key, flat.size, (rank,), replace=False)
        directions = jax.nn.one_hot(chosen, flat.size, dtype=flat.dtype)
    else:
        directions = jax.random.normal(key, (rank, flat.size), flat.dtype)
    products = jax.vmap(lambda v: ravel_pytree(operator.apply(unravel(v)))[0])(directions)
    small = directions @ products.T
    weights, vectors = jnp.linalg.eigh((small + small.T) / 2)
    # Eigenvalues of W below its rounding are noise. A larger cutoff would cost real directions:
    # columns make W far worse conditioned than A.
    cutoff = vector.epsilon(b) * jnp.max(jnp.abs(weights))
    kept = weights > cutoff
    roots = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, weights, 1)), 0)
    basis, singular_values, _ = jnp.linalg.svd(
        products.T @ (vectors * roots[None, :]), full_matrices=False
    )
    return basis, singular_values**2, jnp.min(weights) >= -10 * rank * cutoff


def _check(name: str, rank: int, sketch: str) -> None:
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{name}: rank must be at least 1, got {rank!r}.")
    if sketch not in get_args(Sketch):
        raise ValueError(f"{name}: sketch={sketch!r} is unknown; choose from {get_args(Sketch)}.")
