"""Slices of the meta-loss along a line, and how rough they are.

    f(x) = L(θ + x u),    |u| = 1,    x on an even grid of [−w, w]

Shown along a random direction and along an estimated gradient they tell a smooth bowl from noise:
in chaotic regimes the slice is full of ripples whose slopes backpropagation reports faithfully,
while the slice smoothed at σ, which evolution strategies see, is calm (Metz et al. 2019,
arXiv:1810.10180, §3; 2021, arXiv:2111.05803). The roughness is

    Σ_i |f(x_{i+1}) − f(x_i)| / (max f − min f):    1 for a monotone slice, at most 2 for a bowl
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import MetaLoss


def loss_slice(
    meta_loss: MetaLoss,
    theta: Any,
    direction: Any,
    data: Any,
    key: PRNGKeyArray,
    *,
    offsets: Float[Array, "n"],
    points_at_once: int | None = 8,
) -> Float[Array, "n"]:
    """Meta-losses along a line through theta, all with the same key.

    Args:
        meta_loss: `(theta, data, key) -> scalar`.
        theta: where the line passes through.
        direction: shaped like theta; scaled to unit length.
        data: the pool.
        key: of every evaluation.
        offsets: distances from theta, such as `jnp.linspace(-w, w, 201)`. Traced.
        points_at_once: how many points are vectorised at a time; None: all. Static.

    Returns:
        The losses.
    """
    norm = optax.tree.norm(direction)
    unit = optax.tree.scale(1 / jnp.where(norm > 0, norm, 1), direction)
    # As raw numbers, wrapped anew at each point, to say that one key is meant for all.
    key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)

    def at(offset):
        moved = jax.tree.map(lambda x, u: (x + offset * u).astype(x.dtype), theta, unit)
        return meta_loss(moved, data, jax.random.wrap_key_data(key_data, impl=key_impl))

    size = offsets.shape[0] if points_at_once is None else points_at_once
    return jax.lax.map(at, offsets, batch_size=size)


def roughness(losses: Any) -> float:
    """Total variation over range: 1 for a monotone slice, at most 2 for a bowl, large for noise.

    Args:
        losses: values along a line, on the host; those that are not finite are left out.

    Returns:
        The ratio; 1 for a constant.
    """
    values = np.asarray(losses, np.float64)
    values = values[np.isfinite(values)]
    if values.size < 2 or np.ptp(values) == 0:
        return 1.0
    return float(np.abs(np.diff(values)).sum() / np.ptp(values))


def smoothed(losses: Any, offsets: Any, sigma: float) -> np.ndarray:
    """A slice smoothed by a Gaussian of standard deviation σ along the line.

    Args:
        losses: values along a line, on the host.
        offsets: where, in the units of `sigma`.
        sigma: width of the Gaussian.

    Returns:
        The smoothed values. Near the ends only the part of the Gaussian inside counts; values that
        are not finite are left out.
    """
    values, x = np.asarray(losses, np.float64), np.asarray(offsets, np.float64)
    weights = np.exp(-0.5 * ((x[:, None] - x[None, :]) / sigma) ** 2)
    weights = weights * np.isfinite(values)[None, :]
    total = np.maximum(weights.sum(axis=1), 1e-300)
    return weights @ np.nan_to_num(values, posinf=0, neginf=0) / total
