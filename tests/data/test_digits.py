import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from metaopt.data import digits


def test_the_three_parts_are_the_whole_set_once():
    dataset = digits()
    parts = [dataset.train, dataset.validation, dataset.test]
    assert [len(part.labels) for part in parts] == [1200, 200, 397]
    assert dataset.num_classes == 10
    assert {part.inputs.dtype for part in parts} == {jnp.dtype(jnp.float32)}
    assert {part.labels.dtype for part in parts} == {jnp.dtype(jnp.int32)}
    images = np.concatenate([part.inputs for part in parts]).reshape(-1, 64)
    labels = np.concatenate([part.labels for part in parts])
    raw = load_digits()
    rows = np.concatenate([16 * images, labels[:, None]], axis=1)
    expected = np.concatenate([raw.data, raw.target[:, None]], axis=1)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_the_seed_decides_the_split():
    first, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert (first.train.labels != other.train.labels).any()
