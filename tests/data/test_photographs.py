import sys

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from metaopt.data import photographs


def whole(dataset):
    """All patches and labels."""
    pools = dataset[:3]
    return (np.concatenate([np.asarray(pool[i]) for pool in pools]) for i in range(2))


def test_every_patch_is_one_of_a_photograph_and_comes_once():
    size = 61  # 7 x 10 patches, nothing to spare
    inputs, labels = whole(photographs(size=size))
    expected = {}
    for label, photo in enumerate(load_sample_images().images):
        for i in range(7):
            for j in range(10):
                patch = photo[i * size : (i + 1) * size, j * size : (j + 1) * size]
                expected[patch.tobytes()] = label
    assert len(expected) == len(inputs) == 140
    for patch, label in zip(inputs, labels, strict=True):
        assert expected.pop(np.round(255 * patch).astype(np.uint8).tobytes()) == label


def test_shrinking_averages_blocks():
    inputs, labels = whole(photographs(size=20, shrink=3))
    assert inputs.shape == (2 * 7 * 10, 20, 20, 3)
    photo = load_sample_images().images[1][60:120, 120:180] / 255
    expected = photo.reshape(20, 3, 20, 3, 3).mean((1, 3))  # second row, third column
    distance = np.abs(inputs - expected).max((1, 2, 3))
    assert distance.min() < 1e-6
    assert labels[distance.argmin()] == 1


def test_pools_are_a_seeded_split():
    first, second, other = (photographs(seed=seed) for seed in (0, 0, 1))
    assert [len(pool.labels) for pool in first[:3]] == [364, 78, 78]
    np.testing.assert_array_equal(first.test.inputs, second.test.inputs)
    assert np.abs(np.asarray(first.test.inputs) - np.asarray(other.test.inputs)).max() > 0


def test_bad_settings_and_missing_packages_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="photographs: size=0 is below 1"):
        photographs(size=0)
    with pytest.raises(ValueError, match="photographs: size=200 and shrink=2 leave 2 patches"):
        photographs(size=200, shrink=2)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn pillow"):
        photographs()
