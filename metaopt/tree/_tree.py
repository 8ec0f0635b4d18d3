"""Pytree arithmetic that `optax.tree` lacks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree


def where(condition: Bool[Array, ""], if_true: PyTree, if_false: PyTree) -> PyTree:
    """Selects a whole tree by one scalar condition; typed keys are allowed as leaves."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), if_true, if_false)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every inexact leaf is free of NaN and inf. Leaves of other types do not count."""
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if _is_inexact(x)]
    return jnp.stack(flags).all() if flags else jnp.array(True)


def sample_normal(tree: PyTree, key: PRNGKeyArray) -> PyTree:
    """Standard normal noise with the structure, shapes and dtypes of `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noise = [
        jax.random.normal(key_leaf, jnp.shape(x), jnp.result_type(x))
        for key_leaf, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noise)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Casts every leaf to the dtype of the corresponding leaf of `like`; typed keys stay."""

    def cast(x, y):
        dtype = jnp.result_type(y)
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return x if is_key else jnp.asarray(x).astype(dtype)

    return jax.tree.map(cast, tree, like)


def _is_inexact(x) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)
