"""Tensors as matrices, or as stacks of equal blocks of them, for Kronecker factors.

A tensor becomes a matrix whose columns are its last axis. Cut into blocks of at most `block_size`
rows and columns, the last ones filled up with zeros, it is a stack with one axis more, on which
matrix products act block by block. Anil et al. 2020, arXiv:2002.09018, §3.4 (blocking).
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def to_blocks(
    x: Float[Array, "..."], block_size: int | None
) -> Float[Array, "rows columns"] | Float[Array, "blocks rows columns"]:
    """The matrix of a tensor of two axes or more; with a `block_size`, its blocks, row by row."""
    matrix = x.reshape(-1, x.shape[-1])
    if block_size is None:
        return matrix
    (rows, height), (columns, width) = _cuts(matrix.shape, block_size)
    filled = jnp.pad(
        matrix, ((0, rows * height - len(matrix)), (0, columns * width - matrix.shape[1]))
    )
    grid = filled.reshape(rows, height, columns, width)
    return jnp.swapaxes(grid, 1, 2).reshape(rows * columns, height, width)


def from_blocks(
    blocks: Float[Array, "..."], shape: tuple[int, ...], block_size: int | None
) -> Float[Array, "..."]:
    """The tensor of that shape."""
    if block_size is None:
        return blocks.reshape(shape)
    height, width = math.prod(shape[:-1]), shape[-1]
    (rows, _), (columns, _) = _cuts((height, width), block_size)
    grid = jnp.swapaxes(blocks.reshape(rows, columns, *blocks.shape[1:]), 1, 2)
    filled = grid.reshape(rows * blocks.shape[1], columns * blocks.shape[2])
    return filled[:height, :width].reshape(shape)


def unused_entries(
    shape: tuple[int, ...], block_size: int
) -> tuple[Bool[np.ndarray, "blocks rows"], Bool[np.ndarray, "blocks columns"]]:
    """Which rows and which columns of each block are filled up."""
    sizes = (math.prod(shape[:-1]), shape[-1])
    (rows, height), (columns, width) = _cuts(sizes, block_size)
    of_rows = (np.arange(rows * height) >= sizes[0]).reshape(rows, height)
    of_columns = (np.arange(columns * width) >= sizes[1]).reshape(columns, width)
    return np.repeat(of_rows, columns, axis=0), np.tile(of_columns, (rows, 1))


def _cuts(shape, block_size):
    """For both sides the number and the size of blocks."""
    return tuple((-(-size // block_size), min(size, block_size)) for size in shape)
