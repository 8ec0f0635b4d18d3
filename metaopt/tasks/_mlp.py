"""Multilayer perceptrons on flattened inputs, and their pieces.

    h₀ = x,    hₗ = act(hₗ₋₁ Wₗ + bₗ),    output = h_last W + b

Weights are truncated normal with variance gain/fan_in: gain 2 in hidden layers with a rectifier
(He et al. 2015, arXiv:1502.01852, §2.2), 1 elsewhere (LeCun et al. 1998). Biases start at 0.
"""

import difflib
from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from metaopt.core import TaskFamily, checked
from metaopt.tasks._classification import check_shape, classification_family

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "identity": lambda x: x,
    "leaky_relu": jax.nn.leaky_relu,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}
_RECTIFIERS = ("elu", "gelu", "leaky_relu", "relu", "silu")


@checked
def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: Sequence[int] = (32,),
    activation: str = "relu",
    batch_size: int = 64,
) -> TaskFamily:
    """A multilayer perceptron that classifies the flattened inputs of a labelled pool.

    Args:
        input_shape: shape of one input, flattened. Static.
        num_classes: number of classes, at least 2. Static.
        hidden: widths of the hidden layers; `()` for a linear classifier. Static.
        activation: elu, gelu, identity, leaky_relu, relu, sigmoid, silu, softplus or tanh. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.

    Returns:
        A family with `params` a tuple of layers `{"w": [fan_in, fan_out], "b": [fan_out]}`; see
        `classification`.

    Raises:
        ValueError: as in `classification`; or if a width is below 1 or `activation` is unknown.
    """
    fan_in = check_shape("mlp", input_shape)
    init, apply = dense_layers("mlp", (fan_in, *hidden, num_classes), activation)

    def flatten_and_apply(params, inputs):
        return apply(params, inputs.reshape(len(inputs), -1))

    return classification_family(
        "mlp", init, flatten_and_apply, input_shape, num_classes, batch_size
    )


def dense_layers(function: str, widths: Sequence[int], activation: str):
    """The pair `(key) -> params`, `(params, inputs) -> outputs` of a perceptron."""
    hidden = tuple(widths[1:-1])
    if any(width < 1 for width in hidden):
        raise ValueError(f"{function}: hidden={hidden} has a width below 1; use positive widths.")
    act, hidden_init = activation_and_init(function, activation)
    output_init = jax.nn.initializers.lecun_normal()

    def init(key: PRNGKeyArray) -> tuple[dict[str, Array], ...]:
        keys = jax.random.split(key, len(widths) - 1)
        inits = [hidden_init] * len(hidden) + [output_init]
        return tuple(
            {"w": init_w(layer_key, shape), "b": jnp.zeros(shape[1])}
            for init_w, layer_key, shape in zip(inits, keys, pairwise(widths), strict=True)
        )

    def apply(params, inputs):
        for layer in params[:-1]:
            inputs = act(inputs @ layer["w"] + layer["b"][None])
        return inputs @ params[-1]["w"] + params[-1]["b"][None]

    return init, apply


def activation_and_init(function: str, activation: str):
    """The activation with this name, and the initialiser of the weights that feed it."""
    if activation not in _ACTIVATIONS:
        near = difflib.get_close_matches(activation, _ACTIVATIONS) or sorted(_ACTIVATIONS)
        raise ValueError(
            f"{function}: activation={activation!r} is unknown; did you mean one of {near}?"
        )
    init = jax.nn.initializers
    weights = init.he_normal() if activation in _RECTIFIERS else init.lecun_normal()
    return _ACTIVATIONS[activation], weights
