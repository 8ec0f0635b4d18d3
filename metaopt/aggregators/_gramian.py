"""Small operations on Gramians that several rules share."""

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from metaopt.core import Scalar


def normalised(gramian: Float[Array, "m m"], least: Scalar | None = None) -> Float[Array, "m m"]:
    """G / trace(G), or zero where the trace is below `least`; None: the smallest safe number."""
    # The derivative of a quotient squares the divisor.
    safe = float(jnp.finfo(gramian.dtype).tiny) ** 0.45
    trace = jnp.trace(gramian)
    enough = trace >= (safe if least is None else jnp.maximum(least, safe))
    return jnp.where(enough, gramian, 0.0) / jnp.where(enough, trace, 1.0)


def with_ridge(gramian: Float[Array, "m m"], ridge: Scalar = 0.0) -> Float[Array, "m m"]:
    """G + ridge · I for a G of trace 1, with a ridge of at least the rounding errors of G."""
    size = len(gramian)
    least = size * float(jnp.finfo(gramian.dtype).eps)
    ridge = jnp.maximum(jnp.asarray(ridge, gramian.dtype), least)
    return gramian + ridge * jnp.eye(size, dtype=gramian.dtype)


def solve_within(
    matrix: Float[Array, "m m"], right: Float[Array, " m"], inside: Bool[Array, " m"]
) -> Float[Array, " m"]:
    """Solves for the entries inside, the other rows and columns left out; these entries are 0."""
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    kept = jnp.where(inside[:, None] & inside[None], matrix, eye)
    return jnp.linalg.solve(kept, jnp.where(inside, right, 0.0))


def product(matrix: Float[Array, "m m"], vector: Float[Array, " m"]) -> Float[Array, " m"]:
    """A matrix times a vector, in full precision on every device."""
    return jnp.matmul(matrix, vector, precision="highest")


def preference_of(
    preference: Float[Array, " m"] | None, gramian: Float[Array, "m m"], name: str
) -> Float[Array, " m"]:
    """The preference vector of a rule; by default all objectives count the same."""
    size = len(gramian)
    if preference is None:
        return jnp.full(size, 1 / size, gramian.dtype)
    if jnp.shape(preference) != (size,):
        raise ValueError(
            f"{name}: preference has the shape {jnp.shape(preference)} for {size} objectives; give "
            "one number for each."
        )
    return jnp.asarray(preference, gramian.dtype)


def check_preference(preference, name: str) -> None:
    """Raises for what is no vector."""
    if preference is not None and jnp.ndim(preference) != 1:
        raise ValueError(
            f"{name}: preference must be a vector of one number per objective, got the shape "
            f"{jnp.shape(preference)}; None counts all the same."
        )


def check_at_least(name: str, least: float, **settings) -> None:
    """Raises for a setting below `least`; traced ones are not looked into."""
    for setting, value in settings.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= least):
            raise ValueError(f"{name}: {setting} must be at least {least:g}, got {value}.")
