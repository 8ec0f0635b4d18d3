"""Multinomial logistic regression: the convex task with real data.

    L(W, b) = mean cross-entropy of softmax(W x + b) + ½ l2 ‖W‖²

Here the gradient is Σ (softmax(W x + b) - onehot(y)) xᵀ / n + l2 W.
"""

import jax.numpy as jnp
from jax.core import Tracer

from metaopt.core import Scalar, TaskFamily, checked
from metaopt.tasks._classification import check_shape, classification_family


@checked
def logistic(
    input_shape: tuple[int, ...], num_classes: int, *, batch_size: int = 64, l2: Scalar = 0.0
) -> TaskFamily:
    """Multinomial logistic regression on a labelled pool, started at zero.

    Args:
        input_shape: shape of one input, flattened. Static.
        num_classes: number of classes, at least 2. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.
        l2: weight of ½ ‖W‖²; the biases are free. Traced.

    Returns:
        A family with `params = {"w": [inputs, num_classes], "b": [num_classes]}`; see
        `classification`.

    Raises:
        ValueError: as in `classification`; or if `l2` is negative.
    """
    fan_in = check_shape("logistic", input_shape)
    if not isinstance(l2, Tracer) and l2 < 0:
        raise ValueError(f"logistic: l2={l2} is negative; use 0 or above.")

    def init(key):
        del key  # convex: the start does not matter, and zero is the uniform guess
        return {"w": jnp.zeros((fan_in, num_classes)), "b": jnp.zeros(num_classes)}

    def apply(params, inputs):
        return inputs.reshape(len(inputs), -1) @ params["w"] + params["b"][None]

    def penalty(params):
        return 0.5 * l2 * (params["w"] ** 2).sum()

    return classification_family(
        "logistic", init, apply, input_shape, num_classes, batch_size, penalty
    )
