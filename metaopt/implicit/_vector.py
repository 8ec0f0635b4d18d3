"""Pytrees as vectors: scalars in float32 or wider, entries in their own dtype."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """Σ x·y, accumulated in at least float32."""
    wide = wide_dtype(x)
    terms = [
        jnp.sum(a.astype(wide) * b.astype(wide))
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    ]
    return sum(terms, start=jnp.zeros((), wide))


def norm(x: PyTree) -> Float[Array, ""]:
    """The Euclidean norm."""
    return jnp.sqrt(dot(x, x))


def ratio(x: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
    """x / y, and 0 / 0 = 0."""
    both = (x == 0) & (y == 0)
    return jnp.where(both, jnp.zeros_like(x), x / jnp.where(both, jnp.ones_like(y), y))


def add_scaled(x: PyTree, scale, y: PyTree) -> PyTree:
    """X + scale · y, in the dtypes of x."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale, a.dtype) * b.astype(a.dtype), x, y)


def scaled(scale, x: PyTree) -> PyTree:
    """Scale · x, in the dtypes of x."""
    return jax.tree.map(lambda a: jnp.asarray(scale, a.dtype) * a, x)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """X − y."""
    return jax.tree.map(jnp.subtract, x, y)


def zeros_like(x: PyTree) -> PyTree:
    """Zeros in the shapes and dtypes of x."""
    return jax.tree.map(jnp.zeros_like, x)


def size(x: PyTree) -> int:
    """Number of entries."""
    return sum(leaf.size for leaf in jax.tree.leaves(x))


def wide_dtype(x: PyTree):
    """The dtype that scalars are computed in."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(x))


def epsilon(x: PyTree) -> float:
    """Unit of the last place of the least precise leaf."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(x))


def relative_tolerance(rtol, x: PyTree) -> Any:
    """`rtol`; "auto" is 10 ε^¾, 6e-5 in float32 and 2e-11 in float64."""
    if isinstance(rtol, str):
        return 10 * epsilon(x) ** 0.75
    return rtol
