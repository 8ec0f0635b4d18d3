"""Random linear equations: the quadratics of "learning to learn".

    f(x) = |W x - y|²,    W_ij, y_i ~ N(0, 1),    x_0 = init_scale · N(0, I)

W is square, so that the minimum is 0, and its condition number is of the order of its size.
Andrychowicz et al. 2016, arXiv:1606.04474, §3.1; the starting point is that of its public code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar, TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._normalise import relative_log


class LeastSquaresTask(NamedTuple):
    """One system of equations."""

    matrix: Float[Array, "dim dim"]
    target: Float[Array, " dim"]


@checked
def least_squares(*, dim: int = 10, init_scale: Scalar = 0.01) -> TaskFamily:
    """Squared residuals `|W x - y|²` of random systems of equations, all numbers normal.

    Deterministic: batches and keys change nothing. The normaliser is `relative_log` of |y|², the
    loss at the origin.

    Args:
        dim: number of variables and of equations. Static.
        init_scale: standard deviation of the initial x. Traced.

    Returns:
        A family with `params` of shape [dim], `data = ()` and empty `aux`.

    Raises:
        ValueError: if `dim < 1`.
    """
    at_least_one("least_squares", dim=dim)

    def sample(key):
        key_matrix, key_target = jax.random.split(key)
        return LeastSquaresTask(
            jax.random.normal(key_matrix, (dim, dim)), jax.random.normal(key_target, (dim,))
        )

    def init(task_params, key):
        start = jax.random.normal(key, (dim,), task_params.target.dtype)
        return jnp.asarray(init_scale, start.dtype) * start

    def batch(data, task_params, key):
        del data, task_params, key
        return ()

    def loss(params, task_params, batch, key):
        del batch, key
        return jnp.sum(jnp.square(task_params.matrix @ params - task_params.target)), ()

    def loss_at_origin(task_params):
        return jnp.sum(jnp.square(task_params.target))

    return TaskFamily(sample, init, batch, loss, relative_log(loss_at_origin))
