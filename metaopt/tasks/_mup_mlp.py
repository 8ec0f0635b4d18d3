"""Multilayer perceptrons whose training does not depend on their width (μP).

    h_1 = act(c_in · x W_0 + b_0),  h_{l+1} = act(h_l W_l + b_l),  logits = c_out/width · h W + b

in the form of Yang et al. 2022, arXiv:2203.03466, Table 8, as Thérien et al. 2024,
arXiv:2406.00153, use it: weights of variance 1/fan_in (normal truncated at two standard deviations,
its scale not corrected for that), output weights 0, biases N(0, 1). The other half of μP is the
optimizer's: `metaopt.learned.mup` divides the steps of hidden weights by their fan-in. The standard
form, to compare with: output weights like the others, biases 0, logits h W + b.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Scalar, TaskFamily, checked
from metaopt.tasks._classification import check_shape, classification_family
from metaopt.tasks._mlp import activation_and_init


class MuPMetrics(NamedTuple):
    """What the loss of `mup_mlp` reports besides itself.

    Attributes:
        accuracy: share of the batch whose largest logit is the label's.
        preactivations: of every layer, `[batch, width]`; the last are the logits.
    """

    accuracy: Float[Array, ""]
    preactivations: tuple[Float[Array, "batch width"], ...]


@checked
def mup_mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    batch_size: int = 64,
    input_mult: Scalar = 1.0,
    output_mult: Scalar = 1.0,
    standard: bool = False,
) -> TaskFamily:
    """A perceptron in μP that classifies the flattened inputs of a labelled pool.

    Args:
        input_shape: shape of one input, flattened. Static.
        num_classes: number of classes, at least 2. Static.
        hidden: widths of the hidden layers, at least one. Static.
        activation: as in `mlp`. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.
        input_mult: c_in, multiplies what the first weights give. Traced.
        output_mult: c_out, multiplies the logits besides 1/width. Traced.
        standard: the standard form instead; `output_mult` then multiplies the logits alone. Static.

    Returns:
        A family with `params` as in `mlp`, whose roles `metaopt.learned.mlp_roles` knows, and `aux`
        of type `MuPMetrics`.

    Raises:
        ValueError: as in `mlp`; or if there is no hidden layer.
    """
    fan_in = check_shape("mup_mlp", input_shape)
    if not hidden or any(width < 1 for width in hidden):
        raise ValueError(
            f"mup_mlp: hidden={tuple(hidden)}; give at least one width, and positive ones."
        )
    act, _ = activation_and_init("mup_mlp", activation)
    widths = (fan_in, *hidden, num_classes)

    def init(key: PRNGKeyArray) -> tuple[dict[str, Array], ...]:
        keys = jax.random.split(key, len(widths) - 1)
        layers = [
            _layer(k, shape, standard) for k, shape in zip(keys, pairwise(widths), strict=True)
        ]
        if not standard:
            layers[-1]["w"] = jnp.zeros_like(layers[-1]["w"])
        return tuple(layers)

    def preactivations(params, inputs):
        values, last = [], len(params) - 1
        x = inputs.reshape(len(inputs), -1)
        for index, layer in enumerate(params):
            product = x @ layer["w"]
            if index == 0:
                product = input_mult * product
            if index == last:
                product = output_mult * product / (1 if standard else x.shape[1])
            values.append(product + layer["b"][None])
            x = act(values[-1])
        return tuple(values)

    family = classification_family(
        "mup_mlp",
        init,
        lambda params, inputs: preactivations(params, inputs)[-1],
        input_shape,
        num_classes,
        batch_size,
    )

    def loss(params, task_params, batch, key):
        value, metrics = family.loss(params, task_params, batch, key)
        # The compiler computes this once, and not at all where nobody looks at it.
        return value, MuPMetrics(metrics.accuracy, preactivations(params, batch.inputs))

    return family._replace(loss=loss)


def _layer(key: PRNGKeyArray, shape: tuple[int, int], standard: bool) -> dict[str, Array]:
    key_weights, key_bias = jax.random.split(key)
    weights = jax.random.truncated_normal(key_weights, -2, 2, shape) * shape[0] ** -0.5
    bias = jnp.zeros(shape[1]) if standard else jax.random.normal(key_bias, (shape[1],))
    return {"w": weights, "b": bias}
