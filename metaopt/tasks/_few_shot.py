"""N-way K-shot classification: episodes drawn on the device from any pool sorted by class.

A task is N different classes in random order, which are its labels 0, ..., N - 1, and for each of
them K + Q different examples: the first K are the support set and the others the query set, which
thus never share an example. Thousands of tasks come from one compiled program. Vinyals et al. 2016
(NeurIPS), arXiv:1606.04080, §4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metaopt.core import Data, Params, Split, TaskFamily, checked
from metaopt.data import Pool
from metaopt.data._check import at_least_one
from metaopt.tasks._classification import Metrics
from metaopt.tasks._normalise import clip_classification


class Support(NamedTuple):
    """A pool that support sets are drawn from."""

    pool: Any


class Query(NamedTuple):
    """A pool that query sets are drawn from."""

    pool: Any


class FewShotTask(NamedTuple):
    """What distinguishes episodes.

    Attributes:
        classes: classes of the pool, in the order of the labels.
        examples: for each, the support examples and then the query examples.
    """

    classes: Int[Array, " ways"]
    examples: Int[Array, "ways shots+queries"]


class SupportedBatch(NamedTuple):
    """A query set that brings its support inputs along, for statistics that may be taken of them.

    Attributes:
        inputs: of the queries.
        labels: of the queries.
        context: inputs of the support set.
    """

    inputs: Float[Array, "queries ..."]
    labels: Int[Array, " queries"]
    context: Float[Array, "support ..."]


def episodes(pool: Data) -> Split:
    """The `data` of few-shot families: one pool for both sets, which are told apart by type.

    Args:
        pool: for classification, from `metaopt.data.by_class`, or any array [classes, examples,
            ...] in a `ClassPool`; for `coordinate_images`, the images; for other families, what
            they say, `()` if they need no data.

    Returns:
        `Split(inner=Support(pool), outer=Query(pool))`; the arrays are shared.
    """
    return Split(Support(pool), Query(pool))


@checked
def few_shot(
    init: Callable[[PRNGKeyArray], Params],
    apply: Callable[[Params, Array], Array],
    *,
    pool_shape: tuple[int, ...],
    num_ways: int = 5,
    num_shots: int = 1,
    num_queries: int = 15,
) -> TaskFamily:
    """N-way K-shot classification by a network given as two plain functions.

    The cross-entropy is computed in float32 or wider; the normaliser is `clip_classification`.

    Args:
        init: `(key) -> params`.
        apply: `(params, inputs) -> logits` of shape [batch, num_ways].
        pool_shape: shape of the pool's inputs, `pool.inputs.shape`: a task is drawn before the pool
            is seen, and is checked against it. Static.
        num_ways: classes N of a task. Static.
        num_shots: support examples K of each. Static.
        num_queries: query examples Q of each. Static.

    Returns:
        A family with `data` made by `episodes`, `task_params` a `FewShotTask`, batches of type
        `metaopt.data.Pool`, class after class, and `aux` of type `Metrics`.

    Raises:
        ValueError: if a count is below 1, `num_ways < 2`, or the pool has fewer classes than
            `num_ways` or fewer examples than `num_shots + num_queries`; when traced, if `data` is
            not made by `episodes` or has another shape.
    """
    return few_shot_family(
        "few_shot",
        init,
        lambda params, batch: apply(params, batch.inputs),
        pool_shape,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
    )


def few_shot_family(
    function: str,
    init: Callable[[PRNGKeyArray], Params],
    logits_of: Callable[[Params, Any], Array],
    pool_shape: tuple[int, ...],
    *,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    with_context: bool = False,
) -> TaskFamily:
    """`few_shot` for a network of whole batches, `(params, batch) -> logits`."""

    def loss(params, task_params, batch, key):
        del task_params, key
        logits = logits_of(params, batch)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
        return value, Metrics((jnp.argmax(logits, -1) == batch.labels).astype(value.dtype).mean())

    sample, batch = episode_draws(
        function,
        pool_shape,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
        with_context=with_context,
    )
    return TaskFamily(
        sample=sample,
        init=lambda task_params, key: init(key),
        batch=batch,
        loss=loss,
        normalise=clip_classification(num_ways),
    )


def episode_draws(
    function: str,
    pool_shape: tuple[int, ...],
    *,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    with_context: bool = False,
) -> tuple[Callable[[PRNGKeyArray], FewShotTask], Callable[[Any, FewShotTask, PRNGKeyArray], Any]]:
    """`sample` and `batch` of families of episodes; errors carry the name of the `function`.

    With `with_context`, batches of queries are `SupportedBatch`; all others are a `Pool`.
    """
    at_least_one(function, num_ways=num_ways, num_shots=num_shots, num_queries=num_queries)
    if num_ways < 2:
        raise ValueError(f"{function}: num_ways={num_ways} is below 2; there is no choice.")
    num_examples = num_shots + num_queries
    if len(pool_shape) < 2 or pool_shape[0] < num_ways or pool_shape[1] < num_examples:
        raise ValueError(
            f"{function}: pool_shape={tuple(pool_shape)} must begin with at least num_ways="
            f"{num_ways} classes and num_shots + num_queries={num_examples} examples of each."
        )
    if any(size < 1 for size in pool_shape):
        raise ValueError(f"{function}: pool_shape={tuple(pool_shape)} has a size below 1.")

    def class_labels(examples_per_class):
        return jnp.repeat(jnp.arange(num_ways, dtype=jnp.int32), examples_per_class)

    def sample(key):
        key_classes, key_examples = jax.random.split(key)
        classes = jax.random.permutation(key_classes, pool_shape[0])[:num_ways]
        order = jax.random.uniform(key_examples, (num_ways, pool_shape[1])).argsort(axis=1)
        return FewShotTask(classes.astype(jnp.int32), order[:, :num_examples].astype(jnp.int32))

    def batch(data, task_params, key):
        del key
        if not isinstance(data, Support | Query) or not hasattr(data.pool, "inputs"):
            raise ValueError(
                f"{function}: data is a {type(data).__name__}; pass metaopt.tasks.episodes(pool) "
                "with a ClassPool: its two sides say which examples of a task are meant."
            )
        if data.pool.inputs.shape != tuple(pool_shape):
            raise ValueError(
                f"{function}: the pool has inputs of shape {data.pool.inputs.shape}, but "
                f"pool_shape={tuple(pool_shape)}."
            )
        pool = jnp.asarray(data.pool.inputs)

        def draw(examples):
            inputs = pool[task_params.classes[:, None], examples]
            return inputs.reshape(-1, *pool_shape[2:])

        support, query = jnp.split(task_params.examples, [num_shots], axis=1)
        if isinstance(data, Support):
            return Pool(draw(support), class_labels(num_shots))
        if with_context:
            return SupportedBatch(draw(query), class_labels(num_queries), draw(support))
        return Pool(draw(query), class_labels(num_queries))

    return sample, batch
