"""Inputs labelled by a random network, the teacher.

    x ~ N(0, I),    label = argmax_c [z_c(x) - mean of z_c over the pool]

z is a tanh network with weights N(0, 1/fan_in) and no biases. Centring the outputs keeps the
classes of comparable size; a raw argmax often leaves some of them empty.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from metaopt.data._check import at_least_one
from metaopt.data._pool import Pool


def teacher_network(
    key: PRNGKeyArray,
    *,
    num_classes: int,
    dim: int,
    num_examples: int,
    hidden: Sequence[int] = (32,),
) -> Pool:
    """Draws Gaussian inputs and labels them by a random tanh network.

    Args:
        key: consumed; draws the teacher and the inputs.
        num_classes: number of classes. Static.
        dim: dimension of the inputs. Static.
        num_examples: size of the pool. Static.
        hidden: widths of the teacher's hidden layers; `()` makes the classes linearly separable.
            Static.

    Returns:
        A pool with float inputs [num_examples, dim], not scaled to [0, 1], and int32 labels
        without noise.

    Raises:
        ValueError: if a size or width is below 1.
    """
    at_least_one("teacher_network", num_classes=num_classes, dim=dim, num_examples=num_examples)
    for width in hidden:
        at_least_one("teacher_network", hidden=width)
    key_inputs, key_teacher = jax.random.split(key)
    inputs = jax.random.normal(key_inputs, (num_examples, dim))
    widths = (dim, *hidden, num_classes)
    keys = jax.random.split(key_teacher, len(widths) - 1)
    weights = [
        jax.random.normal(layer_key, shape) / jnp.sqrt(shape[0])
        for layer_key, shape in zip(keys, pairwise(widths), strict=True)
    ]
    outputs = inputs @ weights[0]
    for weight in weights[1:]:
        outputs = jnp.tanh(outputs) @ weight
    centred = outputs - outputs.mean(axis=0, keepdims=True)
    return Pool(inputs, jnp.argmax(centred, axis=-1).astype(jnp.int32))
