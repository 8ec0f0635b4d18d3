"""Random distortions of images: another drawing of the same thing.

    y(p) = x(A (p - shift) + d(p)),    A = R(angle) / scale,    d smooth

with p a position relative to the centre of the image, x read bilinearly and 0 outside. The smooth
displacement d is a 3 x 3 grid of normal numbers, interpolated linearly to the image. Simard et al.
2003 (ICDAR), doi:10.1109/ICDAR.2003.1227801, who smooth noise by a Gaussian filter instead.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Scalar

_GRID = 3


def random_warp(
    inputs: Float[Array, "n height width channels"],
    key: PRNGKeyArray,
    *,
    angle: Scalar = 0.15,
    scale: Scalar = 0.08,
    shift: Scalar = 0.025,
    displacement: Scalar = 0.02,
) -> Float[Array, "n height width channels"]:
    """Turns, scales, shifts and bends every image by its own random amounts.

    Args:
        inputs: images.
        key: consumed.
        angle: standard deviation of the angle, in rad. Traced.
        scale: of the logarithm of the scale. Traced.
        shift: of the position, as a share of the larger side. Traced.
        displacement: of the displacement at a point of the grid, in the same unit. Traced.

    Returns:
        Images of the same shape and dtype; all settings 0 give back the images.

    Raises:
        ValueError: if `inputs` does not have four axes.
    """
    if inputs.ndim != 4:
        raise ValueError(
            f"random_warp: inputs have shape {inputs.shape}; pass [n, height, width, channels]."
        )

    def one(image, key):
        return _read(image, _positions(image.shape[:2], key, angle, scale, shift, displacement))

    return jax.vmap(one)(inputs, jax.random.split(key, len(inputs)))


def _positions(shape, key, angle, scale, shift, displacement) -> Float[Array, "height width 2"]:
    """Where each pixel is read, in pixels."""
    key_angle, key_scale, key_shift, key_grid = jax.random.split(key, 4)
    size = max(shape)
    centre = (jnp.array(shape) - 1.0) / 2
    pixels = jnp.stack(jnp.meshgrid(*map(jnp.arange, shape), indexing="ij"), axis=-1)
    turn = angle * jax.random.normal(key_angle)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    rotation = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    rotation = rotation * jnp.exp(-scale * jax.random.normal(key_scale))
    moved = shift * size * jax.random.normal(key_shift, (2,))
    grid = displacement * size * jax.random.normal(key_grid, (_GRID, _GRID, 2))
    smooth = jax.image.resize(grid, (*shape, 2), "linear")
    offset = pixels - (centre + moved)[None, None]
    return offset @ rotation.T + centre[None, None] + smooth


def _read(image, positions) -> Float[Array, "height width channels"]:
    """Bilinear interpolation, with zeros outside."""
    height, width = image.shape[:2]
    floor = jnp.floor(positions)
    total = jnp.zeros(image.shape, image.dtype)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = floor + jnp.array(corner, floor.dtype)[None, None]
        weight = (1 - jnp.abs(positions - at)).prod(axis=-1)
        row, column = at[..., 0].astype(jnp.int32), at[..., 1].astype(jnp.int32)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        values = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
        weight = jnp.where(inside, weight, 0.0).astype(image.dtype)
        total = total + weight[..., None] * values
    return total
