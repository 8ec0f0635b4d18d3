"""Points near the parameters: unit directions of whole trees, moves along them, gradients there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from metaopt.core import Scalar
from metaopt.optimizers._numerics import global_norm, known, widen

# Shorter trees have no direction: inverses of lengths, and their squares, must be float32.
_TINY = 1e-18


def inner(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """The inner product of two trees of arrays in float32 at least."""
    terms = jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)
    return sum(jax.tree.leaves(terms), jnp.zeros(()))


def unit(tree: PyTree, eps: Scalar = 0.0) -> PyTree:
    """x / (|x| + ε), the norm over the whole tree; leaves in float32 at least.

    Zero for zero, with derivative 0.
    """
    tree = widen(tree)
    length = global_norm(tree)
    is_long = length > _TINY
    denominator = jnp.where(is_long, length, 1.0) + eps
    return jax.tree.map(lambda x: jnp.where(is_long, x / denominator.astype(x.dtype), 0), tree)


def move(params: PyTree, step: Scalar | Array, direction: PyTree) -> PyTree:
    """params + step · direction, in the dtypes of the parameters."""
    return jax.tree.map(
        lambda p, d: (widen(p) + jnp.asarray(step, d.dtype) * d).astype(jnp.result_type(p)),
        params,
        direction,
    )


def require_grad_fn(name: str, grad_fn: Callable | None, params: Any) -> Callable:
    """The extra argument; raises unless it and the parameters are there."""
    if grad_fn is None:
        raise ValueError(
            f"{name}: update needs grad_fn=, a function (params, i) of gradients on the batch of "
            "this step; pass grad_fn=lambda params, i: jax.grad(loss)(params, batch)."
        )
    require_params(name, params)
    return grad_fn


def require_params(name: str, params: Any) -> None:
    """Raises unless parameters are given."""
    if params is None:
        raise ValueError(f"{name}: update needs params; call update(grads, state, params, ...).")


def product_with_hessian(grad_fn: Callable) -> Callable:
    """`(params, v) -> H(params) v`, the derivative of the gradient along v."""

    def product(params, v):
        v = jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), v, params)
        return jax.jvp(lambda p: grad_fn(p, 0), (params,), (v,))[1]

    return product


def check_sign(name: str, *, strict: bool, **values: Scalar) -> None:
    """Raises unless numbers that are known are finite and not negative (`strict`: positive)."""
    for argument, value in values.items():
        if not known(value):
            continue
        good = np.isfinite(value) and (value > 0 if strict else value >= 0)
        if not good:
            wanted = "positive" if strict else "at least 0"
            raise ValueError(f"{name}: {argument} must be finite and {wanted}, got {value}.")
