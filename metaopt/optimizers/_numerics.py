"""Roots, norms and quotients whose derivatives are finite at 0, and squares that do not overflow.

d√v/dv is infinite at v = 0, and 0 · ∞ is NaN: one entry that has only seen zero gradients would
turn a whole meta-gradient into NaN. Here the guard is on the input of `where`, so that derivatives
at 0 are 0. Gradients of 1e30 are float32, their squares are not.
"""

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def wide(x) -> jnp.dtype:
    """The dtype of statistics of an array: its own, but float32 at least."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def widen(tree: PyTree) -> PyTree:
    """All leaves in the dtype of their statistics."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(wide(x)), tree)


def wide_zeros(tree: PyTree) -> PyTree:
    """Zeros like the leaves, in the dtype of their statistics."""
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), wide(x)), tree)


def moderate(tree: PyTree) -> PyTree:
    """Entries clipped to where sums of their squares are finite: about 1e16 in float32."""

    def clip(x):
        limit = float(jnp.finfo(wide(x)).max) ** 0.5 / 1024
        # Half precision does not get there.
        return jnp.clip(x, -limit, limit) if limit < float(jnp.finfo(x.dtype).max) else x

    return jax.tree.map(clip, tree)


def root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """√x for x ≥ 0, with derivative 0 at 0."""
    positive = x > 0
    # A NaN is no positive number, but stays one.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), jnp.where(x == 0, 0, x))


def quotient(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / y, and 0 where y is 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def norm(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Euclidean norms along an axis, which is kept; squares of large numbers do not overflow."""
    scale = _scale(_largest(x, axis=axis, keepdims=True))
    return scale * root(jnp.sum((x / scale) ** 2, axis=axis, keepdims=True))


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all leaves together, in float32 at least, and as `norm`."""
    leaves = jax.tree.leaves(widen(tree))
    if not leaves:
        return jnp.zeros(())
    dtype = jnp.result_type(*leaves)
    scale = _scale(jnp.stack([_largest(x).astype(dtype) for x in leaves]).max())
    squares = [jnp.sum((x / scale) ** 2, dtype=dtype) for x in leaves]
    return scale * root(jnp.sum(jnp.stack(squares)))


def _largest(x, **axes):
    """The largest absolute value, a constant; 0 for none.

    That of the bits, whose order is that of positive floats with NaN above infinity: a reduction of
    integers is several times faster on CPU, where that of floats has to look for NaN.
    """
    bits = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    encoded = jax.lax.bitcast_convert_type(jnp.abs(jax.lax.stop_gradient(x)), bits)
    return jax.lax.bitcast_convert_type(jnp.max(encoded, initial=0, **axes), x.dtype)


def _scale(largest):
    """What to divide by before squaring; a constant, for no norm depends on it."""
    usable = jnp.isfinite(largest) & (largest > jnp.finfo(largest.dtype).tiny)
    return jax.lax.stop_gradient(jnp.where(usable, largest, 1))


def known(x) -> bool:
    """Whether a setting has a value already, which can be refused; a traced one has none."""
    return not isinstance(x, jax.core.Tracer)


def refuse_decays(function: str, **decays) -> None:
    """Raises ValueError, on behalf of `function`, for a decay outside [0, 1)."""
    for name, decay in decays.items():
        if known(decay) and not 0 <= decay < 1:
            raise ValueError(
                f"{function}: {name} must be in [0, 1), got {decay}; it is the weight of the past "
                "in a moving average."
            )
