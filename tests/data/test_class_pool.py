import jax
import numpy as np
import pytest

from metaopt.data import Pool, by_class, digits, strokes, tfds_class_pool
from tests.data import tiny_tfds


def test_every_class_is_a_row_in_the_order_of_the_pool():
    labels = np.array([7, 3, 7, 3, 9, 3, 9, 7])
    inputs = np.arange(8, dtype=np.float32)[:, None]
    rows = by_class(Pool(inputs, labels)).inputs
    # Two of each, because 9 has no third.
    np.testing.assert_array_equal(rows[..., 0], [[1, 3], [0, 2], [4, 6]])


def test_strokes_are_sorted_already():
    pool = strokes(jax.random.key(0), num_classes=3, examples_per_class=4, size=5)
    np.testing.assert_array_equal(by_class(pool).inputs, pool.inputs.reshape(3, 4, 5, 5, 1))


def test_digits_keep_as_many_as_the_rarest_class_has():
    pool = digits().train
    labels, inputs = np.asarray(pool.labels), np.asarray(pool.inputs)
    rows = np.asarray(by_class(pool).inputs)
    assert rows.shape == (10, np.bincount(labels).min(), 8, 8, 1)
    for label in range(10):
        np.testing.assert_array_equal(rows[label], inputs[labels == label][: rows.shape[1]])


def test_omniglot_by_characters(tmp_path):
    # Labels are the index modulo 1623: two examples of the first two characters, one of the others.
    tiny_tfds.write("omniglot", tmp_path, split_sizes={"train": 8, "test": 6})
    pool = tfds_class_pool(
        "omniglot", split="train", data_dir=str(tmp_path), image_size=15, grayscale=True
    )
    assert pool.inputs.shape == (8, 1, 15, 15, 1)
    raw = np.stack([tiny_tfds.pixels(i, (105, 105, 3)) for i in range(8)]) / 255
    expected = (raw @ [0.299, 0.587, 0.114]).reshape(8, 15, 7, 15, 7).mean((2, 4))
    np.testing.assert_allclose(pool.inputs[:, 0, ..., 0], expected, atol=1e-6)
    novel = tfds_class_pool("omniglot", split="test", data_dir=str(tmp_path), image_size=15)
    assert novel.inputs.shape == (6, 1, 15, 15, 3)
    with pytest.raises(ValueError, match="tfds_class_pool: split='small1'"):
        tfds_class_pool("omniglot", split="small1", data_dir=str(tmp_path), image_size=15)


def test_several_examples_of_a_tfds_class_share_a_row(tmp_path):
    tiny_tfds.write("mnist", tmp_path, split_sizes={"train": 25, "test": 1})
    rows = tfds_class_pool("mnist", data_dir=str(tmp_path)).inputs
    assert rows.shape == (10, 2, 28, 28, 1)  # five classes have three, and leave one over
    examples = np.round(255 * np.asarray(rows)[:, :, 0, 0, 0]).astype(int)
    assert (examples % 10 == np.arange(10)[:, None]).all()
    assert (examples[:, 0] != examples[:, 1]).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.float32), "dtype float32; pass one integer class"),
        (np.zeros((3, 1), np.int32), r"labels have shape \(3, 1\)"),
        (np.zeros(2, np.int32), "leading axes of the pool differ"),
    ],
)
def test_bad_pools_are_refused(labels, message):
    with pytest.raises(ValueError, match=f"by_class: .*{message}"):
        by_class(Pool(np.zeros((3, 2), np.float32), labels))
    with pytest.raises(ValueError, match="by_class: the pool is empty"):
        by_class(Pool(np.zeros((0, 2), np.float32), np.zeros(0, np.int32)))
