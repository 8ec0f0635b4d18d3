"""Any classifier on any labelled pool as a task: cross-entropy on minibatches.

    L(params) = mean over the batch of -ln softmax(apply(params, x))[y] + penalty(params)

The cross-entropy is in nats; ln C is the loss of a uniform guess over C classes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Params, TaskFamily, checked
from metaopt.data import Pool, sample_batch
from metaopt.data._check import at_least_one
from metaopt.tasks._normalise import clip_classification


class Metrics(NamedTuple):
    """What a classification loss reports besides itself.

    Attributes:
        accuracy: share of the batch whose largest logit is the label's.
    """

    accuracy: Float[Array, ""]


@checked
def classification(
    init: Callable[[PRNGKeyArray], Params],
    apply: Callable[[Params, Array], Array],
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    batch_size: int = 64,
    penalty: Callable[[Params], Array] | None = None,
) -> TaskFamily:
    """Minibatch training of a classifier, given as two plain functions, on a labelled pool.

    The way in for any model: plain functions, Flax, Equinox. `logistic`, `mlp` and `convnet` are
    made by it. The cross-entropy is computed in float32 or wider; tasks differ in nothing but
    their initial parameters; the normaliser is `clip_classification`.

    Args:
        init: `(key) -> params`.
        apply: `(params, inputs) -> logits` of shape [batch, num_classes].
        input_shape: shape of one input, checked against the pool. Static.
        num_classes: number of classes, at least 2. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.
        penalty: `(params) -> scalar`, added to the cross-entropy.

    Returns:
        A family with `data` a `metaopt.data.Pool`, `task_params = ()` and `aux` of type `Metrics`.

    Raises:
        ValueError: if a size is below 1 or `num_classes < 2`; when traced, if `data` has no
            `inputs` of shape [n, *input_shape].
    """
    return classification_family(
        "classification", init, apply, input_shape, num_classes, batch_size, penalty
    )


def classification_family(
    name, init, apply, input_shape, num_classes, batch_size, penalty=None
) -> TaskFamily:
    """`classification` for the factories built on it; errors carry their `name`."""
    at_least_one(name, batch_size=batch_size)
    check_shape(name, input_shape)
    if num_classes < 2:
        raise ValueError(f"{name}: num_classes={num_classes} is below 2; there is no choice.")

    def loss(params, task_params, batch, key):
        del task_params, key
        logits = apply(params, batch.inputs)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
        if penalty is not None:
            value = value + penalty(params)
        accuracy = (jnp.argmax(logits, axis=-1) == batch.labels).astype(logits.dtype).mean()
        return value, Metrics(accuracy)

    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: init(key),
        batch=batch_from_pool(name, input_shape, batch_size),
        loss=loss,
        normalise=clip_classification(num_classes),
    )


def batch_from_pool(function: str, input_shape: tuple[int, ...], batch_size: int) -> Callable:
    """A `TaskFamily.batch` that draws from a pool whose inputs have shape `input_shape`."""

    def batch(data, task_params, key) -> Pool:
        del task_params
        if not hasattr(data, "inputs"):
            raise ValueError(
                f"{function}: data is a {type(data).__name__} without inputs; pass a "
                "metaopt.data.Pool, such as dataset.train or stream.pool(step)."
            )
        if data.inputs.shape[1:] != tuple(input_shape):
            raise ValueError(
                f"{function}: the pool has inputs of shape {data.inputs.shape[1:]}, but "
                f"input_shape={tuple(input_shape)}."
            )
        return sample_batch(data, key, batch_size=batch_size)

    return batch


def check_shape(function: str, input_shape: tuple[int, ...]) -> int:
    """The number of entries of one input; raises if it is not positive."""
    if any(size < 1 for size in input_shape):
        raise ValueError(
            f"{function}: input_shape={tuple(input_shape)} has a size below 1; use positive sizes."
        )
    return math.prod(input_shape)
