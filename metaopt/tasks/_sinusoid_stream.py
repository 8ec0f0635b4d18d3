"""Streams of sinusoids, one function after the other: a test of forgetting.

    y = Aᵢ sin(x - φᵢ),    inputs (x / 5, one-hot of i),    i = 1, ..., n in turn

The functions are those of few-shot sinusoids; the network is told which one is asked for. The
stream shows some batches of the first function, then some of the second one, and so on; the query
set asks for all of them. After Javed and White 2019, arXiv:1905.12588, §4.1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metaopt.core import TaskFamily, checked
from metaopt.data import Pool
from metaopt.data._check import at_least_one
from metaopt.data._sinusoids import SinusoidTask, sample_points, sample_sinusoid
from metaopt.tasks._few_shot import Query, Support
from metaopt.tasks._mlp import dense_layers


class SinusoidStreamTask(NamedTuple):
    """The functions of a stream, in order.

    Attributes:
        functions: their amplitudes and phases.
        ids: what the network knows them by.
    """

    functions: SinusoidTask
    ids: Int[Array, " functions"]


@checked
def sinusoid_stream(
    *,
    hidden: Sequence[int] = (128, 128, 200),
    activation: str = "relu",
    num_functions: int = 6,
    num_ids: int | None = None,
    num_batches: int = 6,
    batch_size: int = 8,
    num_queries: int = 32,
) -> TaskFamily:
    """Regression of several sinusoids that come one after the other.

    Args:
        hidden: widths of the hidden layers. Static.
        activation: as in `mlp`. Static.
        num_functions: functions of a stream. Static.
        num_ids: how many the network can tell apart; a stream draws its own among them. None: as
            many as there are functions. Static.
        num_batches: batches of each function. Static.
        batch_size: points in a batch. Static.
        num_queries: points of each function in the query set. Static.

    Returns:
        A family with `data = metaopt.tasks.episodes(())`; support batches are streams, a
        `metaopt.data.Pool` with inputs [num_functions * num_batches, batch_size, 1 + num_ids];
        query batches have inputs [num_functions * num_queries, 1 + num_ids]. `params` are as in
        `mlp`, the loss is the mean squared error, and `aux` is empty.

    Raises:
        ValueError: if a count is below 1, `num_ids < num_functions` or `activation` is unknown;
            when traced, if `data` is not made by `episodes`.
    """
    num_ids = num_functions if num_ids is None else num_ids
    at_least_one(
        "sinusoid_stream",
        num_functions=num_functions,
        num_batches=num_batches,
        batch_size=batch_size,
        num_queries=num_queries,
    )
    if num_ids < num_functions:
        raise ValueError(
            f"sinusoid_stream: num_ids={num_ids} is below num_functions={num_functions}; "
            "functions would share a name."
        )
    init, apply = dense_layers("sinusoid_stream", (1 + num_ids, *hidden, 1), activation)

    def sample(key):
        key_functions, key_ids = jax.random.split(key)
        functions = jax.vmap(sample_sinusoid)(jax.random.split(key_functions, num_functions))
        ids = jax.random.uniform(key_ids, (num_ids,)).argsort()[:num_functions]
        return SinusoidStreamTask(functions, ids.astype(jnp.int32))

    def points(task_params: SinusoidStreamTask, key: PRNGKeyArray, num_points: int) -> Pool:
        """Points of every function, [num_functions, num_points, ...]."""

        def one(task, key):
            function, index = task
            inputs, labels = sample_points(function, key, num_points=num_points)
            name = jnp.broadcast_to(jax.nn.one_hot(index, num_ids)[None], (num_points, num_ids))
            return Pool(jnp.concatenate([inputs / 5, name], axis=-1), labels)

        return jax.vmap(one)(task_params, jax.random.split(key, num_functions))

    def batch(data, task_params, key):
        if isinstance(data, Support):
            drawn, shape = points(task_params, key, num_batches * batch_size), (-1, batch_size)
        elif isinstance(data, Query):
            drawn, shape = points(task_params, key, num_queries), (-1,)
        else:
            raise ValueError(
                f"sinusoid_stream: data is a {type(data).__name__}; pass "
                "metaopt.tasks.episodes(()), whose two sides tell streams from query sets."
            )
        return jax.tree.map(lambda x: x.reshape(*shape, x.shape[-1]), drawn)

    def loss(params, task_params, batch, key):
        del task_params, key
        outputs = apply(params, batch.inputs)
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return jnp.mean((outputs - batch.labels) ** 2), ()

    return TaskFamily(sample, lambda task_params, key: init(key), batch, loss)
