"""Linear systems and implicit problems with dense answers."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def like():
    """A right-hand side with a scalar, a vector and a matrix."""
    rng = np.random.default_rng(3)
    return {
        "a": jnp.asarray(rng.normal()),
        "b": (jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(2, 2)))),
    }


def apply_matrix(matrix, tree):
    """The product of a matrix with a ravelled tree, as a tree."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jnp.asarray(matrix, flat.dtype) @ flat)


def definite(size=8, seed=0, condition=30.0):
    """A symmetric positive definite matrix."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return basis @ np.diag(np.geomspace(1, condition, size)) @ basis.T


def rotated(size=8, seed=1):
    """A well-conditioned matrix that is not symmetric."""
    rng = np.random.default_rng(seed)
    return np.eye(size) * 2 + rng.normal(size=(size, size)) / size**0.5


class Ridge(NamedTuple):
    """Ridge regression with one logarithmic penalty per weight.

    Arrays are NumPy's, in float64; the derivative is in closed form.
    """

    inner: Callable
    outer: Callable
    theta: np.ndarray
    params: np.ndarray
    hessian: np.ndarray
    exact: np.ndarray


@functools.cache
def ridge(num_train=60, num_valid=40, dim=40, level=-2.0):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=dim) * (rng.random(dim) < 0.3)
    x, xv = rng.normal(size=(num_train, dim)), rng.normal(size=(num_valid, dim))
    t = x @ truth + 0.5 * rng.normal(size=num_train)
    tv = xv @ truth + 0.5 * rng.normal(size=num_valid)

    def inner(params, theta):
        return 0.5 * jnp.mean((x @ params - t) ** 2) + 0.5 * jnp.sum(jnp.exp(theta) * params**2)

    def outer(params, theta):
        return 0.5 * jnp.mean((xv @ params - tv) ** 2) + 0.1 * jnp.sum(theta**2)

    theta = np.full(dim, level)
    hessian = x.T @ x / num_train + np.diag(np.exp(theta))
    params = np.linalg.solve(hessian, x.T @ t / num_train)
    u = np.linalg.solve(hessian, xv.T @ (xv @ params - tv) / num_valid)
    return Ridge(inner, outer, theta, params, hessian, 0.2 * theta - np.exp(theta) * params * u)
