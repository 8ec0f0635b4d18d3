"""Hand-drawn characters, procedurally: an offline stand-in for Omniglot.

A class is a few quadratic Bézier strokes with random control points p. An example jitters the
control points and turns, scales and shifts the whole, then draws it with a soft pen of width w:

    p' = scale · R(angle) · (p + noise) + shift,    ink(pixel) = exp(-d² / (2w²))

with d the distance from the pixel to the nearest segment of the strokes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Scalar
from metaopt.data._check import at_least_one
from metaopt.data._pool import Pool

_SEGMENTS_PER_STROKE = 8


def strokes(
    key: PRNGKeyArray,
    *,
    num_classes: int,
    examples_per_class: int,
    size: int = 28,
    num_strokes: int = 3,
    jitter: Scalar = 1.0,
) -> Pool:
    """Draws a pool of procedural characters, class after class.

    Args:
        key: consumed; draws the classes and the examples.
        num_classes: number of characters. Static.
        examples_per_class: drawings of each. Static.
        size: height and width of the images; 16 and 28 are usual. Static.
        num_strokes: Bézier strokes of a character. Static.
        jitter: strength of the variation within a class: at 1, standard deviations of 0.15 rad in
            angle, 8 % in scale and 2.5 % of the image in position, 2 % of it per control point.
            At 0 all examples of a class are equal. Traced.

    Returns:
        A pool with float inputs [num_classes * examples_per_class, size, size, 1] in [0, 1], ink
        near 1, and int32 labels `0, ..., 0, 1, ...`: reshape to [num_classes, examples_per_class]
        to draw few-shot episodes.

    Raises:
        ValueError: if a size is below 1.
    """
    at_least_one(
        "strokes",
        num_classes=num_classes,
        examples_per_class=examples_per_class,
        size=size,
        num_strokes=num_strokes,
    )

    def one_class(key):
        key_prototype, key_examples = jax.random.split(key)
        # In units of the image with the origin at its centre; margins leave room for the jitter.
        prototype = jax.random.uniform(key_prototype, (num_strokes, 3, 2), minval=-0.4, maxval=0.4)

        def one_example(key):
            control = _vary(prototype, key, jitter=jitter)
            start, end = _segments(control)
            return _render(start, end, size=size)

        return jax.vmap(one_example)(jax.random.split(key_examples, examples_per_class))

    # One class at a time: distances from all pixels to all segments are the memory. Keys as raw
    # numbers, because the key-reuse checker mistakes a loop over batched keys for reuse.
    keys, impl = jax.random.key_data(jax.random.split(key, num_classes)), jax.random.key_impl(key)
    images = jax.lax.map(lambda raw: one_class(jax.random.wrap_key_data(raw, impl=impl)), keys)
    labels = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), examples_per_class)
    return Pool(images.reshape(-1, size, size, 1), labels)


def _vary(control, key, *, jitter):
    key_points, key_angle, key_scale, key_shift = jax.random.split(key, 4)
    control = control + 0.02 * jitter * jax.random.normal(key_points, control.shape)
    angle = 0.15 * jitter * jax.random.normal(key_angle)
    scale = jnp.exp(0.08 * jitter * jax.random.normal(key_scale))
    shift = 0.025 * jitter * jax.random.normal(key_shift, (1, 1, 2))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    return scale * (control @ rotation.T) + shift


def _segments(
    control: Float[Array, "strokes 3 2"],
) -> tuple[Float[Array, "segments 2"], Float[Array, "segments 2"]]:
    """Start and end points of the segments that approximate quadratic Bézier curves."""
    t = jnp.linspace(0.0, 1.0, _SEGMENTS_PER_STROKE + 1)
    bernstein = jnp.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=-1)
    points = jnp.einsum("tb,sbc->stc", bernstein, control)
    return points[:, :-1].reshape(-1, 2), points[:, 1:].reshape(-1, 2)


def _render(
    start: Float[Array, "segments 2"], end: Float[Array, "segments 2"], *, size: int
) -> Float[Array, "size size"]:
    """Ink at the pixel centres; points are (row, column) in [-1/2, 1/2]."""
    centres = (jnp.arange(size) + 0.5) / size - 0.5
    pixels = jnp.stack(jnp.meshgrid(centres, centres, indexing="ij"), axis=-1)[:, :, None, :]
    direction = (end - start)[None, None]
    offset = pixels - start[None, None]
    # The guard keeps a stroke of length zero a dot.
    length2 = jnp.maximum((direction**2).sum(-1), 1e-12)
    along = jnp.clip((offset * direction).sum(-1) / length2, 0.0, 1.0)
    distance2 = ((offset - along[..., None] * direction) ** 2).sum(-1).min(-1)
    pen = max(0.03, 0.6 / size)  # at least about a pixel, or small images lose strokes
    return jnp.exp(-distance2 / (2 * pen**2))
