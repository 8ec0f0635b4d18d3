"""Tangent vectors of theta, and derivatives along them, for forward mode.

`basis_vector` gives the coordinates one by one, `random_direction` draws v with E[v vᵀ] = I, for
which (∇L · v) v is an unbiased estimate of ∇L (forward gradients: Baydin et al. 2022,
arXiv:2202.08587). Rademacher directions have the smaller variance.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt import tree

Directions = Literal["rademacher", "normal"]


def num_coordinates(theta: PyTree) -> int:
    """How many numbers theta has."""
    return sum(jnp.size(x) for x in jax.tree.leaves(theta))


def basis(theta: PyTree) -> PyTree:
    """All unit vectors, each shaped like theta, stacked on a leading axis."""
    flat, unravel = ravel_pytree(theta)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))


def random_directions(
    theta: PyTree, key: PRNGKeyArray, *, num_directions: int, directions: Directions
) -> PyTree:
    """Independent directions shaped like theta, stacked on a leading axis."""

    def one(key):
        if directions == "normal":
            return tree.sample_normal(theta, key)
        signs = tree.sample_normal(theta, key)
        return jax.tree.map(lambda x: jnp.where(x < 0, -jnp.ones_like(x), jnp.ones_like(x)), signs)

    return jax.vmap(one)(jax.random.split(key, num_directions))


def map_columns(function: Callable, columns: PyTree, at_once: int | None) -> PyTree:
    """`function(column)` for every column: `at_once` of them vectorised, then the next ones."""
    if at_once is None:
        return jax.vmap(function)(columns)
    return jax.lax.map(function, columns, batch_size=at_once)


def combine(slopes: Float[Array, "columns"], columns: PyTree, scale: float) -> PyTree:
    """scale · Σ_m slopes_m columns_m."""
    return jax.tree.map(lambda v: scale * jnp.tensordot(slopes.astype(v.dtype), v, axes=1), columns)
