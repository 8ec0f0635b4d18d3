"""Random quadratics: the problem whose every answer is known.

    f(x) = ½ (x - x*)ᵀ H (x - x*),    H = Q diag(λ) Qᵀ,    ln λᵢ ~ U[ln min_eig, ln max_eig]

Q is a Haar-distributed orthogonal matrix (QR of a Gaussian matrix with the signs of R's diagonal
absorbed: Mezzadri 2007, arXiv:math-ph/0609050); x* and the initial x are standard normal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar, TaskFamily, checked
from metaopt.data._check import at_least_one, ordered
from metaopt.tasks._normalise import relative_log


class QuadraticTask(NamedTuple):
    """One quadratic.

    Attributes:
        basis: Q, eigenvectors in columns.
        eigenvalues: λ.
        optimum: x*.
    """

    basis: Float[Array, "dim dim"]
    eigenvalues: Float[Array, " dim"]
    optimum: Float[Array, " dim"]


@checked
def quadratic(*, dim: int, min_eig: Scalar = 0.01, max_eig: Scalar = 1.0) -> TaskFamily:
    """Quadratics `½ (x - x*)ᵀ H (x - x*)` with a random basis, spectrum and optimum.

    Deterministic: batches and keys change nothing. The normaliser is `relative_log` of the mean
    loss over initial points, ½ (tr H + x*ᵀ H x*).

    Args:
        dim: number of variables. Static.
        min_eig: smallest eigenvalue. Traced.
        max_eig: largest eigenvalue; equal to `min_eig` for a multiple of the identity. Traced.

    Returns:
        A family with `params` of shape [dim], `data = ()` and empty `aux`.

    Raises:
        ValueError: if `dim < 1`, or not `0 < min_eig <= max_eig`.
    """
    at_least_one("quadratic", dim=dim)
    ordered("quadratic", min_eig=min_eig, max_eig=max_eig)

    def sample(key):
        key_basis, key_eigenvalues, key_optimum = jax.random.split(key, 3)
        q, r = jnp.linalg.qr(jax.random.normal(key_basis, (dim, dim)))
        return QuadraticTask(
            basis=q * jnp.sign(jnp.diagonal(r))[None],
            eigenvalues=log_uniform(key_eigenvalues, (dim,), low=min_eig, high=max_eig),
            optimum=jax.random.normal(key_optimum, (dim,)),
        )

    def init(task_params, key):
        return jax.random.normal(key, (dim,), task_params.optimum.dtype)

    def batch(data, task_params, key):
        del data, task_params, key
        return ()

    def loss(params, task_params, batch, key):
        del batch, key
        along = task_params.basis.T @ (params - task_params.optimum)
        return 0.5 * (task_params.eigenvalues * along**2).sum(), ()

    def typical_loss(task_params):
        along = task_params.basis.T @ task_params.optimum
        return 0.5 * (task_params.eigenvalues * (1 + along**2)).sum()

    return TaskFamily(sample, init, batch, loss, relative_log(typical_loss))


def log_uniform(key, shape=(), *, low, high) -> Array:
    """Draws numbers whose logarithm is uniform on [ln low, ln high]."""
    log_low, log_high = jnp.log(low), jnp.log(high)
    return jnp.exp(jax.random.uniform(key, shape, minval=log_low, maxval=log_high))
