"""Regression by a perceptron on a pool of inputs and targets.

L(params) = mean over the batch and the outputs of (mlp(x) - y)²
"""

from collections.abc import Sequence

import jax.numpy as jnp

from metaopt.core import TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._classification import batch_from_pool, check_shape
from metaopt.tasks._mlp import dense_layers
from metaopt.tasks._normalise import relative_log


@checked
def regression(
    input_shape: tuple[int, ...],
    *,
    num_outputs: int = 1,
    hidden: Sequence[int] = (32,),
    activation: str = "relu",
    batch_size: int = 64,
) -> TaskFamily:
    """A perceptron that predicts targets from the flattened inputs of a pool, such as a table.

    The normaliser is `relative_log` of 1, the loss of the constant guess on targets with mean 0
    and variance 1, which `metaopt.data.tabular` has; attach another one for other targets.

    Args:
        input_shape: shape of one input, flattened. Static.
        num_outputs: targets of one example. Static.
        hidden: widths of the hidden layers; `()` for linear least squares. Static.
        activation: as in `mlp`. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.

    Returns:
        A family with `data` a `metaopt.data.Pool` with labels [n, num_outputs],
        `task_params = ()`, `params` as in `mlp` and empty `aux`.

    Raises:
        ValueError: as in `mlp`; or if `num_outputs` is below 1; when traced, if the labels do not
            have the shape [n, num_outputs].
    """
    at_least_one("regression", num_outputs=num_outputs, batch_size=batch_size)
    size = check_shape("regression", input_shape)
    init, apply = dense_layers("regression", (size, *hidden, num_outputs), activation)

    def loss(params, task_params, batch, key):
        del task_params, key
        if batch.labels.shape[1:] != (num_outputs,):
            raise ValueError(
                f"regression: a label has the shape {batch.labels.shape[1:]}, not "
                f"{(num_outputs,)}; set num_outputs, or pass labels[:, None]."
            )
        outputs = apply(params, batch.inputs.reshape(len(batch.inputs), -1))
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return ((outputs - batch.labels) ** 2).mean(), ()

    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: init(key),
        batch=batch_from_pool("regression", input_shape, batch_size),
        loss=loss,
        normalise=relative_log(lambda task_params: 1.0),
    )
