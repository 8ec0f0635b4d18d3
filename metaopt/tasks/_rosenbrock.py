"""The Rosenbrock function: a curved valley, in any dimension, at a random place.

    f(x) = Σᵢ a (uᵢ₊₁ - uᵢ²)² + (1 - uᵢ)²,    u = x - shift,    i = 1 … dim - 1

The minimum, 0, is at u = (1, …, 1). Rosenbrock 1960, doi 10.1093/comjnl/3.3.175, chained as in
Moré, Garbow and Hillstrom 1981, doi 10.1145/355934.355936. The shift is standard normal and the
start uniform on [-2, 2] in each uᵢ; the classical one is (-1.2, 1).
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from metaopt.core import Scalar, TaskFamily, checked
from metaopt.data._check import above_zero
from metaopt.tasks._normalise import relative_log


class RosenbrockTask(NamedTuple):
    """One valley.

    Attributes:
        shift: where the origin of the function lies.
    """

    shift: Float[Array, " dim"]


@checked
def rosenbrock(*, dim: int = 2, steepness: Scalar = 100.0) -> TaskFamily:
    """Rosenbrock functions with random shifts and starts.

    Deterministic: batches and keys change nothing. The normaliser is `relative_log` of the mean
    loss over starts, (dim - 1) (68/15 a + 7/3), with a floor of 1e-6: nearly all of that loss is
    gone once the bottom of the valley is reached, and the way along it is what is hard.

    Args:
        dim: number of variables, at least 2. Static.
        steepness: a, the curvature across the valley relative to that along it. Traced.

    Returns:
        A family with `params` of shape [dim], `data = ()`, `task_params` a `RosenbrockTask` and
        empty `aux`.

    Raises:
        ValueError: if `dim < 2` or `steepness` is not positive.
    """
    if dim < 2:
        raise ValueError(f"rosenbrock: dim={dim} is below 2; a valley needs two variables.")
    above_zero("rosenbrock", steepness=steepness)

    def init(task_params, key):
        shift = task_params.shift
        return shift + jax.random.uniform(key, (dim,), shift.dtype, minval=-2.0, maxval=2.0)

    def batch(data, task_params, key):
        del data, task_params, key
        return ()

    def loss(params, task_params, batch, key):
        del batch, key
        u = params - task_params.shift
        across, along = u[1:] - u[:-1] ** 2, 1 - u[:-1]
        return (steepness * across**2 + along**2).sum(), ()

    return TaskFamily(
        sample=lambda key: RosenbrockTask(jax.random.normal(key, (dim,))),
        init=init,
        batch=batch,
        loss=loss,
        normalise=relative_log(
            lambda task_params: (dim - 1) * (68 / 15 * steepness + 7 / 3), floor=1e-6
        ),
    )
