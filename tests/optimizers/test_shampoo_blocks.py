import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers._shampoo_blocks import (
    from_blocks,
    merged_shape,
    to_blocks,
    unused_entries,
)


@pytest.mark.parametrize("shape", [(4, 6), (5, 4), (2, 3, 7), (1, 1), (3, 4, 1, 5)])
@pytest.mark.parametrize("block_size", [None, 3, 100])
def test_a_tensor_comes_back_from_its_blocks(shape, block_size):
    x = jnp.arange(np.prod(shape), dtype=float).reshape(shape)
    assert (from_blocks(to_blocks(x, block_size), shape, block_size) == x).all()


def test_blocks_are_cut_row_by_row_and_filled_with_zeros():
    x = np.arange(1.0, 16.0).reshape(5, 3)
    blocks = np.asarray(to_blocks(jnp.asarray(x), 2))
    assert blocks.shape == (6, 2, 2)
    np.testing.assert_array_equal(blocks[0], x[:2, :2])
    np.testing.assert_array_equal(blocks[3], [[x[2, 2], 0], [x[3, 2], 0]])
    np.testing.assert_array_equal(blocks[5], [[x[4, 2], 0], [0, 0]])
    rows, columns = unused_entries((5, 3), 2)
    np.testing.assert_array_equal(np.where(rows[..., None] | columns[:, None], 0, 1), blocks != 0)


def test_blocks_of_a_tensor_are_cut_along_every_axis():
    x = np.arange(1.0, 61.0).reshape(3, 5, 4)
    blocks = np.asarray(to_blocks(jnp.asarray(x), 2))
    assert blocks.shape == (2 * 3 * 2, 2, 2, 2)
    np.testing.assert_array_equal(blocks[0], x[:2, :2, :2])
    np.testing.assert_array_equal(blocks[3], x[:2, 2:4, 2:])
    np.testing.assert_array_equal(blocks[11][:1, :1], x[2:, 4:, 2:])
    first, second, third = unused_entries((3, 5, 4), 2)
    unused = first[:, :, None, None] | second[:, None, :, None] | third[:, None, None]
    np.testing.assert_array_equal(~unused, blocks != 0)


@pytest.mark.parametrize(
    ("shape", "limit", "merged"),
    [
        ((3, 3, 8, 16), 128, (72, 16)),
        ((3, 3, 8, 16), 10, (9, 8, 16)),
        ((3, 3, 8, 16), 1, (3, 3, 8, 16)),
        ((1, 512, 1, 64, 4), 1024, (512, 256)),
        ((2, 3), 128, (2, 3)),
        ((7,), 128, (7,)),
        ((), 128, ()),
    ],
)
def test_short_axes_are_merged_down_to_two(shape, limit, merged):
    assert merged_shape(shape, limit) == merged
