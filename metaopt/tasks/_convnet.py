"""A small convolutional network: 3 x 3 convolutions of stride 2, global mean pool, linear head."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metaopt.core import TaskFamily, checked
from metaopt.tasks._classification import check_shape, classification_family
from metaopt.tasks._convolution import convolve
from metaopt.tasks._mlp import activation_and_init


@checked
def convnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: Sequence[int] = (8, 16),
    activation: str = "relu",
    batch_size: int = 64,
) -> TaskFamily:
    """A small convolutional classifier of the images of a labelled pool.

    Args:
        input_shape: height, width and channels of an image. Static.
        num_classes: number of classes, at least 2. Static.
        channels: output channels of the convolutions, each of which halves the image. Static.
        activation: as in `mlp`. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.

    Returns:
        A family with `params = {"convs": ({"w": [3, 3, in, out], "b": [out]}, ...),
        "head": {"w": [channels[-1], num_classes], "b": [num_classes]}}`; see `classification`.

    Raises:
        ValueError: as in `classification`; or if `input_shape` does not have three sizes,
            `channels` is empty or has a number below 1, or `activation` is unknown.
    """
    check_shape("convnet", input_shape)
    if len(input_shape) != 3:
        raise ValueError(
            f"convnet: input_shape={tuple(input_shape)} is not (height, width, channels)."
        )
    if not channels or any(count < 1 for count in channels):
        raise ValueError(
            f"convnet: channels={tuple(channels)} must hold positive numbers, at least one."
        )
    act, kernel_init = activation_and_init("convnet", activation)
    head_init = jax.nn.initializers.lecun_normal()

    def init(key):
        key_head, *keys = jax.random.split(key, len(channels) + 1)
        convs, fan_in = [], input_shape[-1]
        for layer_key, fan_out in zip(keys, channels, strict=True):
            kernel = kernel_init(layer_key, (3, 3, fan_in, fan_out))
            convs.append({"w": kernel, "b": jnp.zeros(fan_out)})
            fan_in = fan_out
        head = {"w": head_init(key_head, (fan_in, num_classes)), "b": jnp.zeros(num_classes)}
        return {"convs": tuple(convs), "head": head}

    def apply(params, inputs):
        for layer in params["convs"]:
            inputs = act(convolve(inputs, layer["w"], stride=2) + layer["b"][None, None, None])
        return inputs.mean(axis=(1, 2)) @ params["head"]["w"] + params["head"]["b"][None]

    return classification_family("convnet", init, apply, input_shape, num_classes, batch_size)
