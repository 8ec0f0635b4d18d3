"""Autoencoders: a perceptron that reconstructs its input through a narrow layer.

    squared_error:  mean over pixels of (σ(z) - x)²
    cross_entropy:  mean over pixels of -x ln σ(z) - (1 - x) ln(1 - σ(z)),   z = mlp(x)

Hinton and Salakhutdinov 2006, doi 10.1126/science.1127647, trained end to end.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from metaopt.core import TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._classification import batch_from_pool, check_shape
from metaopt.tasks._mlp import dense_layers
from metaopt.tasks._normalise import relative_log

Reconstruction = Literal["squared_error", "cross_entropy"]


@checked
def autoencoder(
    input_shape: tuple[int, ...],
    *,
    hidden: Sequence[int] = (32, 8, 32),
    activation: str = "relu",
    reconstruction: Reconstruction = "squared_error",
    batch_size: int = 64,
) -> TaskFamily:
    """A perceptron autoencoder of inputs in [0, 1]; labels are not used.

    The normaliser is `relative_log` of the loss of the constant guess ½, the output of zero
    weights: at most ¼ (squared error), ln 2 (cross-entropy).

    Args:
        input_shape: shape of one input, flattened. Static.
        hidden: widths of the hidden layers, the narrowest being the code. Static.
        activation: as in `mlp`. Static.
        reconstruction: what is minimised, above; the cross-entropy is bounded below by the mean
            entropy of the pixels, not by 0. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.

    Returns:
        A family with `data` a `metaopt.data.Pool`, `task_params = ()`, `params` as in `mlp` and
        empty `aux`.

    Raises:
        ValueError: as in `mlp`; or if `reconstruction` is unknown.
    """
    if reconstruction not in get_args(Reconstruction):
        raise ValueError(
            f"autoencoder: reconstruction={reconstruction!r} is unknown; choose from "
            f"{get_args(Reconstruction)}."
        )
    at_least_one("autoencoder", batch_size=batch_size)
    size = check_shape("autoencoder", input_shape)
    init, apply = dense_layers("autoencoder", (size, *hidden, size), activation)
    squared = reconstruction == "squared_error"
    typical_loss = 0.25 if squared else math.log(2)

    def loss(params, task_params, batch, key):
        del task_params, key
        targets = batch.inputs.reshape(len(batch.inputs), -1)
        logits = apply(params, targets)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if squared:
            return ((jax.nn.sigmoid(logits) - targets) ** 2).mean(), ()
        return optax.sigmoid_binary_cross_entropy(logits, targets).mean(), ()

    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: init(key),
        batch=batch_from_pool("autoencoder", input_shape, batch_size),
        loss=loss,
        normalise=relative_log(lambda task_params: typical_loss),
    )
