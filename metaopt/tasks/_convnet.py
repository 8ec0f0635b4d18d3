"""A small convolutional network: 3 x 3 convolutions of stride 2, global mean pool, linear head."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import TaskFamily, checked
from metaopt.tasks._classification import check_shape, classification_family
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


def convolve(
    images: Float[Array, "n h w inputs"],
    kernel: Float[Array, "3 3 inputs outputs"],
    *,
    stride: int,
) -> Float[Array, "n h2 w2 outputs"]:
    """A 3 x 3 convolution with "SAME" padding, as nine slices and one product.

    Kernels differ between vmapped tasks, which turns XLA's convolution into a grouped one. On CPU,
    eight tasks in a scan take 4 (8 x 8 images) to 18 times (32 x 32) longer with it than with
    this, and 4 to 10 times longer in the meta-gradient.
    """
    height, width = images.shape[1:3]
    out_height, out_width = -(-height // stride), -(-width // stride)
    span_height, span_width = stride * (out_height - 1) + 1, stride * (out_width - 1) + 1
    pad_height, pad_width = span_height + 2 - height, span_width + 2 - width
    padded = jnp.pad(
        images,
        (
            (0, 0),
            (pad_height // 2, pad_height - pad_height // 2),
            (pad_width // 2, pad_width - pad_width // 2),
            (0, 0),
        ),
    )
    patches = [
        padded[:, i : i + span_height : stride, j : j + span_width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
