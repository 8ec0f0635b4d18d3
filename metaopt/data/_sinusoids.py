"""Sinusoids: the few-shot regression curves of MAML.

    y = A sin(x - φ),    A ~ U[0.1, 5],    φ ~ U[0, π],    x ~ U[-5, 5]

Finn et al. 2017, arXiv:1703.03400, §5.1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.data._check import at_least_one
from metaopt.data._pool import Pool


class SinusoidTask(NamedTuple):
    """One curve.

    Attributes:
        amplitude: A.
        phase: φ, in radians.
    """

    amplitude: Float[Array, ""]
    phase: Float[Array, ""]


def sample_sinusoid(key: PRNGKeyArray) -> SinusoidTask:
    """Draws a curve."""
    key_amplitude, key_phase = jax.random.split(key)
    amplitude = jax.random.uniform(key_amplitude, minval=0.1, maxval=5.0)
    return SinusoidTask(amplitude, jax.random.uniform(key_phase, maxval=math.pi))


def sample_points(task: SinusoidTask, key: PRNGKeyArray, *, num_points: int) -> Pool:
    """Draws points on a curve: inputs and labels of shape [num_points, 1]."""
    inputs = jax.random.uniform(key, (num_points, 1), minval=-5.0, maxval=5.0)
    return Pool(inputs, task.amplitude * jnp.sin(inputs - task.phase))


def sinusoids(key: PRNGKeyArray, *, num_curves: int, points_per_curve: int) -> Pool:
    """Draws a pool whose examples are whole curves `y = A sin(x - φ)`, as in MAML.

    Finn et al. 2017, arXiv:1703.03400, §5.1. A few-shot task is one example of the pool, split
    into support and query points; `metaopt.tasks.sinusoid_regression` draws endless ones instead.

    Args:
        key: consumed.
        num_curves: size of the pool. Static.
        points_per_curve: points per curve. Static.

    Returns:
        A pool with float inputs and labels of shape [num_curves, points_per_curve, 1]; inputs lie
        in [-5, 5], labels are targets, not classes.

    Raises:
        ValueError: if a size is below 1.
    """
    at_least_one("sinusoids", num_curves=num_curves, points_per_curve=points_per_curve)

    def one_curve(key):
        key_task, key_points = jax.random.split(key)
        return sample_points(sample_sinusoid(key_task), key_points, num_points=points_per_curve)

    return jax.vmap(one_curve)(jax.random.split(key, num_curves))
