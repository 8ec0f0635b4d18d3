"""Few-shot segmentation: find one procedural shape among others, from a few masks.

    outline:  r(φ) = radius · exp(Σₖ aₖ cos(k (φ - turn) + pₖ)),    k = 2, 3, 4
    L(params) = binary cross-entropy + 1 - (2 Σ m y) / (Σ m + Σ y),    m = sigmoid(logits)

A task is a shape (a, p). An image shows it at a random place, size and brightness and slightly
turned, above other shapes and noise; y is where it is. The loss, with the Dice coefficient of
Milletari et al. 2016, arXiv:1606.04797, and learned initial weights for it are those of Hendryx et
al. 2019, arXiv:1912.06290, there on photographs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from metaopt.core import TaskFamily, checked
from metaopt.data import Pool
from metaopt.data._check import at_least_one
from metaopt.tasks._convolution import convolve

_HARMONICS = np.array([2, 3, 4])
_SPREAD = np.array([0.35, 0.25, 0.15])
# A uniform guess: ln 2, and a Dice loss of at most 1.
_WORST = 1.5 * (math.log(2) + 1)


class ShapeTask(NamedTuple):
    """A shape, up to place, size and a small turn.

    Attributes:
        amplitudes: of the harmonics 2, 3 and 4 of the logarithm of its radius.
        phases: theirs, in radians.
    """

    amplitudes: Float[Array, " 3"]
    phases: Float[Array, " 3"]


class Overlap(NamedTuple):
    """What a segmentation loss reports besides itself.

    Attributes:
        iou: intersection over union of the mask and what is predicted with a chance above one
            half, averaged over images.
    """

    iou: Float[Array, ""]


@checked
def shape_segmentation(
    *, size: int = 16, num_clutter: int = 2, channels: Sequence[int] = (8, 16), batch_size: int = 5
) -> TaskFamily:
    """Segmentation of a shape against clutter by a small U-shaped network.

    One convolution at full resolution, one of stride 2, one more at half of it; back at full
    resolution a last one reads both. The normaliser clips to 1.5 times the loss of a uniform guess.

    Args:
        size: height and width of the images, even. Static.
        num_clutter: other shapes beneath, drawn anew for each image. Static.
        channels: of the convolutions at full and at half resolution. Static.
        batch_size: images in a support or a query set: the number of shots. Static.

    Returns:
        A family with `data = ()`, `task_params` a `ShapeTask`, batches a `metaopt.data.Pool` of
        images [n, size, size, 1] and masks [n, size, size] of 0 and 1, `params` a tuple of
        four layers `{"w": [3, 3, in, out], "b": [out]}` and `aux` of type `Overlap`.

    Raises:
        ValueError: if a count is below 1 (`num_clutter`: below 0), `size` is odd or `channels` does
            not hold two.
    """
    name = "shape_segmentation"
    at_least_one(name, size=size, batch_size=batch_size)
    if size % 2 or num_clutter < 0:
        raise ValueError(
            f"{name}: size={size} must be even and num_clutter={num_clutter} at least 0."
        )
    if len(channels) != 2 or any(count < 1 for count in channels):
        raise ValueError(f"{name}: channels={tuple(channels)} must hold two positive numbers.")

    def init(task_params, key):
        del task_params
        full, half = channels
        sizes = ((1, full), (full, half), (half, half), (full + half, 1))
        weights = jax.nn.initializers.he_normal()
        return tuple(
            {"w": weights(layer_key, (3, 3, *fans)), "b": jnp.zeros(fans[1])}
            for layer_key, fans in zip(jax.random.split(key, 4), sizes, strict=True)
        )

    def batch(data, task_params, key):
        del data
        draw = jax.vmap(lambda key: draw_scene(task_params, key, size, num_clutter))
        return draw(jax.random.split(key, batch_size))

    def loss(params, task_params, batch, key):
        del task_params, key
        logits = _segment(params, batch.inputs)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return mask_loss(logits, batch.labels.astype(logits.dtype))

    def normalise(loss, task_params):
        del task_params
        return jnp.clip(jnp.nan_to_num(loss, nan=_WORST), 0.0, _WORST)

    return TaskFamily(sample_shape, init, batch, loss, normalise)


def sample_shape(key) -> ShapeTask:
    """Amplitudes are normal, phases uniform."""
    key_amplitudes, key_phases = jax.random.split(key)
    amplitudes = jnp.asarray(_SPREAD) * jax.random.normal(key_amplitudes, (3,))
    phases = jax.random.uniform(key_phases, (3,), minval=-math.pi, maxval=math.pi)
    return ShapeTask(amplitudes, phases)


def draw_scene(shape: ShapeTask, key, size: int, num_clutter: int) -> Pool:
    """One image with its mask: noise, then the clutter, then the shape."""
    key_noise, *keys = jax.random.split(key, num_clutter + 2)
    image = 0.1 * jax.random.normal(key_noise, (size, size))
    inside = jnp.zeros((size, size), bool)
    for index, key_shape in enumerate(keys):
        key_kind, key_place = jax.random.split(key_shape)
        is_target = index == num_clutter
        kind = shape if is_target else sample_shape(key_kind)
        inside, brightness = _place(kind, key_place, size)
        image = jnp.where(inside, brightness + 0.5 * image, image)
    return Pool(image[..., None], inside.astype(image.dtype))


def _place(shape, key, size):
    """Where a shape is, at a random place, and how bright."""
    key_centre, key_radius, key_turn, key_brightness = jax.random.split(key, 4)
    centre = jax.random.uniform(key_centre, (2,), minval=-0.5, maxval=0.5)
    radius = jax.random.uniform(key_radius, (), minval=0.25, maxval=0.4)
    turn = 0.2 * jax.random.normal(key_turn)
    brightness = jax.random.uniform(key_brightness, (), minval=0.5, maxval=1.0)
    return outline(shape, centre, radius, turn, size), brightness


def outline(shape: ShapeTask, centre, radius, turn, size: int):
    """Which pixel centres of [-1, 1]² lie inside a shape: centre and radius in half widths."""
    ticks = jnp.asarray((2 * np.arange(size) + 1) / size - 1)
    rows, columns = jnp.meshgrid(ticks - centre[0], ticks - centre[1], indexing="ij")
    angle = (jnp.arctan2(rows, columns) - turn)[..., None]
    waves = jnp.cos(_HARMONICS[None, None] * angle + shape.phases[None, None])
    waves = shape.amplitudes[None, None] * waves
    return rows**2 + columns**2 < (radius * jnp.exp(waves.sum(-1))) ** 2


def mask_loss(logits: Float[Array, "n h w"], masks: Float[Array, "n h w"]):
    """Cross-entropy plus Dice loss, and the overlap; pixels first, then images are averaged."""
    pixels = (1, 2)
    entropy = optax.sigmoid_binary_cross_entropy(logits, masks).mean()
    chances = jax.nn.sigmoid(logits)
    # One pixel on both sides, so that an empty image is no division by zero.
    dice = (2 * (chances * masks).sum(pixels) + 1) / (chances.sum(pixels) + masks.sum(pixels) + 1)
    found, there = logits > 0, masks > 0.5
    either = (found | there).sum(pixels)
    iou = jnp.where(either > 0, (found & there).sum(pixels) / jnp.maximum(either, 1), 1.0)
    return entropy + (1 - dice).mean(), Overlap(iou.astype(logits.dtype).mean())


def _segment(params, images):
    """Logits, [n, size, size]."""

    def layer(index, x, stride):
        return convolve(x, params[index]["w"], stride=stride) + params[index]["b"][None, None, None]

    fine = jax.nn.relu(layer(0, images, 1))
    coarse = jax.nn.relu(layer(1, fine, 2))
    coarse = jax.nn.relu(layer(2, coarse, 1))
    coarse = coarse.repeat(2, axis=1).repeat(2, axis=2)
    return layer(3, jnp.concatenate([fine, coarse], axis=-1), 1)[..., 0]
