"""Regression in one of several environments, from a few of its measurements.

    L(params) = mean over measurements and outputs of (apply(params, x) - y)²

A task is an environment of a pool and a random choice of its measurements, some of which are the
support set and others the query set.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metaopt.core import Params, TaskFamily, checked
from metaopt.data import Pool
from metaopt.data._check import at_least_one
from metaopt.tasks._few_shot import Query, Support


class EnvironmentTask(NamedTuple):
    """What distinguishes tasks.

    Attributes:
        environment: its index in the pool.
        points: measurements, first those of the support set and then those of the query set.
    """

    environment: Int[Array, ""]
    points: Int[Array, " shots+queries"]


@checked
def environments(
    init: Callable[[PRNGKeyArray], Params],
    apply: Callable[[Params, Array], Array],
    *,
    pool_shape: tuple[int, ...],
    num_shots: int = 8,
    num_queries: int = 32,
) -> TaskFamily:
    """Few-shot regression over environments that were measured at the same number of points.

    Args:
        init: `(key) -> params`.
        apply: `(params, inputs [n, inputs]) -> [n, outputs]`.
        pool_shape: shape of the pool's inputs, `pool.inputs.shape`, against which the pool is
            checked. Static.
        num_shots: support measurements of a task. Static.
        num_queries: query measurements, none of them in the support set. Static.

    Returns:
        A family with `data = metaopt.tasks.episodes(pool)` for an `EnvironmentPool`, `task_params`
        an `EnvironmentTask`, batches of type `metaopt.data.Pool` and empty `aux`.

    Raises:
        ValueError: if a count is below 1 or an environment has fewer than `num_shots + num_queries`
            measurements; when traced, if `data` is not made by `episodes` or has another shape.
    """
    at_least_one("environments", num_shots=num_shots, num_queries=num_queries)
    num_points = num_shots + num_queries
    if len(pool_shape) != 3 or pool_shape[1] < num_points or pool_shape[0] < 1:
        raise ValueError(
            f"environments: pool_shape={tuple(pool_shape)} must be (environments, points, inputs) "
            f"with at least num_shots + num_queries={num_points} points."
        )

    def sample(key):
        key_environment, key_points = jax.random.split(key)
        environment = jax.random.randint(key_environment, (), 0, pool_shape[0])
        points = jax.random.permutation(key_points, pool_shape[1])[:num_points]
        return EnvironmentTask(environment, points)

    def batch(data, task_params, key):
        del key
        if not isinstance(data, Support | Query):
            raise ValueError(
                f"environments: data is a {type(data).__name__}; pass metaopt.tasks.episodes(pool),"
                " whose two sides say which measurements of a task are meant."
            )
        if data.pool.inputs.shape != tuple(pool_shape):
            raise ValueError(
                f"environments: the pool has inputs of shape {data.pool.inputs.shape}, but "
                f"pool_shape={tuple(pool_shape)}."
            )
        is_support = isinstance(data, Support)
        points = task_params.points
        points = points[:num_shots] if is_support else points[num_shots:]
        environment = task_params.environment
        return Pool(data.pool.inputs[environment, points], data.pool.labels[environment, points])

    def loss(params, task_params, batch, key):
        del task_params, key
        outputs = apply(params, batch.inputs)
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return jnp.mean((outputs - batch.labels) ** 2), ()

    return TaskFamily(sample, lambda task_params, key: init(key), batch, loss)
