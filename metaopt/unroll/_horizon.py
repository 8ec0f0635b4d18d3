"""Horizons: how many inner steps a trajectory lasts.

A horizon is a range of lengths; a trajectory's length is drawn log-uniformly from the multiples
of the truncation in the range, so that trajectories end only where windows end:

    T = K · ⌊exp(u)⌋,    u ~ U[log(T_min / K), log(T_max / K + 1)]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metaopt.core import checked


class Horizon(NamedTuple):
    """A range of trajectory lengths in inner steps, ends included. Static."""

    shortest: int
    longest: int


@checked
def log_uniform(shortest: int, longest: int) -> Horizon:
    """Lengths drawn log-uniformly between two ends, both included.

    Args:
        shortest: shortest length in inner steps. Static.
        longest: longest length in inner steps. Static.

    Returns:
        A horizon, for the `horizon=` of unrolled estimators. A plain int is a constant horizon.

    Raises:
        ValueError: if the range is empty or `shortest < 1`.
    """
    if not 1 <= shortest <= longest:
        raise ValueError(
            f"log_uniform: need 1 <= shortest <= longest, got {shortest} and {longest}."
        )
    return Horizon(int(shortest), int(longest))


def as_horizon(horizon: int | Horizon, *, name: str, multiple_of: int = 1) -> Horizon:
    """Checks a user's horizon and turns an int into a constant one.

    Args:
        horizon: a length or a range of lengths. Static.
        name: the function on whose behalf errors speak.
        multiple_of: the truncation that must divide both ends. Static.

    Returns:
        The horizon as a range.

    Raises:
        ValueError: if an end is below 1 or not a multiple of `multiple_of`; the message names the
            nearest horizon that is.
    """
    if multiple_of < 1:
        raise ValueError(f"{name}: truncation must be at least 1, got {multiple_of}.")
    ends = (horizon, horizon) if isinstance(horizon, int) else tuple(horizon)
    for length in ends:
        if length < 1:
            raise ValueError(f"{name}: horizon must be at least 1 step, got {length}.")
        if length % multiple_of:
            nearest = max(1, round(length / multiple_of)) * multiple_of
            divisor = max(d for d in range(1, multiple_of + 1) if length % d == 0)
            raise ValueError(
                f"{name}: horizon={length} is not a multiple of truncation={multiple_of}; "
                f"try horizon={nearest} or truncation={divisor}."
            )
    return log_uniform(*ends)


def sample_length(horizon: Horizon, key: PRNGKeyArray, *, multiple_of: int = 1) -> Int[Array, ""]:
    """Draws one trajectory length, a multiple of `multiple_of` (static) inside the range."""
    low, high = horizon.shortest // multiple_of, horizon.longest // multiple_of
    exponent = jax.random.uniform(key, (), jnp.float32, jnp.log(low), jnp.log(high + 1))
    return multiple_of * jnp.clip(jnp.floor(jnp.exp(exponent)).astype(jnp.int32), low, high)
