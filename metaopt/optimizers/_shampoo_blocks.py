"""Tensors as stacks of equal blocks, for Kronecker factors.

Axes that are short together count as one. Every axis is cut into pieces of at most `block_size`
entries, the last one filled up with zeros. The blocks form a stack with one axis more than the
tensor, its first. Anil et al. 2020, arXiv:2002.09018, §3.4 (blocking).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def merged_shape(shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """A shape with neighbouring axes merged up to a product, from the left, down to two axes."""
    merged, left = list(shape[:1]), len(shape)
    for size in shape[1:]:
        if left > 2 and merged[-1] * size <= limit:
            merged[-1] *= size
            left -= 1
        else:
            merged.append(size)
    return tuple(merged)


def to_blocks(x: Float[Array, "..."], block_size: int | None) -> Float[Array, "..."]:
    """The blocks of a tensor, in the order of its entries; without a size, the tensor itself."""
    if block_size is None:
        return x
    cuts = _cuts(x.shape, block_size)
    filled = jnp.pad(
        x, [(0, count * size - length) for (count, size), length in zip(cuts, x.shape, strict=True)]
    )
    grid = filled.reshape([number for cut in cuts for number in cut])
    # Counts of blocks first, their sizes after them.
    order = [*range(0, grid.ndim, 2), *range(1, grid.ndim, 2)]
    return grid.transpose(order).reshape(-1, *(size for _, size in cuts))


def from_blocks(
    blocks: Float[Array, "..."], shape: tuple[int, ...], block_size: int | None
) -> Float[Array, "..."]:
    """The tensor of that shape."""
    if block_size is None:
        return blocks
    cuts = _cuts(shape, block_size)
    grid = blocks.reshape(*(count for count, _ in cuts), *(size for _, size in cuts))
    order = np.arange(grid.ndim).reshape(2, -1).T.ravel()  # Each count beside its size.
    filled = grid.transpose(order).reshape([count * size for count, size in cuts])
    return filled[tuple(slice(length) for length in shape)]


def unused_entries(
    shape: tuple[int, ...], block_size: int
) -> tuple[Bool[np.ndarray, "blocks size"], ...]:
    """For each axis, which entries along it are filled up in each block."""
    cuts = _cuts(shape, block_size)
    places = np.indices([count for count, _ in cuts]).reshape(len(cuts), -1)
    return tuple(
        (np.arange(count * size) >= length).reshape(count, size)[place]
        for (count, size), length, place in zip(cuts, shape, places, strict=True)
    )


def _cuts(shape, block_size):
    """For each axis the number and the size of blocks."""
    return [(-(-size // block_size), min(size, block_size)) for size in shape]
