"""Few-shot regression of sinusoids by a perceptron.

    L(params) = mean over the batch of (mlp(x) - A sin(x - φ))²

Finn et al. 2017, arXiv:1703.03400, §5.1.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from metaopt.core import TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.data._sinusoids import sample_points, sample_sinusoid
from metaopt.tasks._mlp import dense_layers
from metaopt.tasks._normalise import relative_log


@checked
def sinusoid_regression(
    *, hidden: Sequence[int] = (40, 40), activation: str = "relu", batch_size: int = 10
) -> TaskFamily:
    """Regression of `A sin(x - φ)` from fresh points: A ~ U[0.1, 5], φ ~ U[0, π], x ~ U[-5, 5].

    The normaliser is `relative_log` of A²/2, the loss of the constant 0 over whole periods.

    Args:
        hidden: widths of the hidden layers; (40, 40) is the paper's. Static.
        activation: as in `mlp`. Static.
        batch_size: points in a batch: the number of shots. Static.

    Returns:
        A family with `data = ()`, `task_params` a `SinusoidTask`, `params` as in `mlp` and empty
        `aux`.

    Raises:
        ValueError: if a width or `batch_size` is below 1, or `activation` is unknown.
    """
    at_least_one("sinusoid_regression", batch_size=batch_size)
    init, apply = dense_layers("sinusoid_regression", (1, *hidden, 1), activation)

    def batch(data, task_params, key):
        del data
        return sample_points(task_params, key, num_points=batch_size)

    def loss(params, task_params, batch, key):
        del task_params, key
        outputs = apply(params, batch.inputs)
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return ((outputs - batch.labels) ** 2).mean(), ()

    return TaskFamily(
        sample=sample_sinusoid,
        init=lambda task_params, key: init(key),
        batch=batch,
        loss=loss,
        normalise=relative_log(lambda task_params: task_params.amplitude**2 / 2),
    )
