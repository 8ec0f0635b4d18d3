"""Vision transformers: patches of an image as tokens, blocks, a mean over patches, a linear head.

Dosovitskiy et al. 2021, arXiv:2010.11929, in small, without dropout; the mean replaces the class
token (Beyer et al. 2022, arXiv:2205.01580). The blocks are those of `_transformer`.
"""

import jax
import jax.numpy as jnp

from metaopt.core import TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._classification import check_shape, classification_family
from metaopt.tasks._transformer import transformer


@checked
def vision_transformer(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    patch: int = 2,
    depth: int = 2,
    width: int = 32,
    heads: int = 2,
    expansion: int = 2,
    batch_size: int = 32,
) -> TaskFamily:
    """A transformer that classifies the images of a labelled pool by their patches.

    Args:
        input_shape: height, width and channels of an image. Static.
        num_classes: number of classes, at least 2. Static.
        patch: height and width of a patch, a divisor of the image's. Static.
        depth: number of blocks. Static.
        width: size of the residual stream. Static.
        heads: attention heads, a divisor of `width`. Static.
        expansion: width of a block's perceptron over that of the stream. Static.
        batch_size: examples in a minibatch, drawn with replacement. Static.

    Returns:
        A family with `params = {"embed": {"w": [patch * patch * channels, width], "b": [width]},
        "position": [patches, width], "blocks": (block, ...), "scale": [width], "head": {"w":
        [width, num_classes], "b": [num_classes]}}`; see `classification`.

    Raises:
        ValueError: as in `classification`; or if `input_shape` does not have three sizes, a size
            is below 1, the patches do not tile the image or `width` is not a multiple of `heads`.
    """
    check_shape("vision_transformer", input_shape)
    at_least_one("vision_transformer", patch=patch)
    if len(input_shape) != 3 or input_shape[0] % patch or input_shape[1] % patch:
        raise ValueError(
            f"vision_transformer: input_shape={tuple(input_shape)} is not (height, width, "
            f"channels) with sides that are multiples of patch={patch}."
        )
    rows, columns = input_shape[0] // patch, input_shape[1] // patch
    patch_size = patch * patch * input_shape[2]
    init_blocks, apply_blocks = transformer(
        "vision_transformer",
        depth=depth,
        width=width,
        heads=heads,
        expansion=expansion,
        causal=False,
    )
    weights = jax.nn.initializers.lecun_normal()

    def init(key):
        key_embed, key_position, key_blocks, key_head = jax.random.split(key, 4)
        return {
            "embed": {"w": weights(key_embed, (patch_size, width)), "b": jnp.zeros(width)},
            "position": 0.1 * jax.random.normal(key_position, (rows * columns, width)),
            **init_blocks(key_blocks),
            "head": {"w": weights(key_head, (width, num_classes)), "b": jnp.zeros(num_classes)},
        }

    def apply(params, inputs):
        # [n, rows, patch, columns, patch, channels] -> [n, patches, pixels of a patch]
        x = inputs.reshape(len(inputs), rows, patch, columns, patch, -1)
        x = jnp.swapaxes(x, 2, 3).reshape(len(inputs), rows * columns, patch_size)
        x = x @ params["embed"]["w"] + params["embed"]["b"][None, None] + params["position"][None]
        x = apply_blocks(params, x).mean(axis=1)
        return x @ params["head"]["w"] + params["head"]["b"][None]

    return classification_family(
        "vision_transformer", init, apply, input_shape, num_classes, batch_size
    )
