import math
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.data import tfds_dataset, tfds_stream
from metaopt.data._tfds import _area_average
from tests.data import tiny_tfds


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    tiny_tfds.write("mnist", folder, split_sizes={"train": 20, "test": 6})
    omniglot = {"train": 10, "test": 4, "small1": 2, "small2": 2}
    tiny_tfds.write("omniglot", folder, split_sizes=omniglot)
    return folder


def index_of(images):
    """The example that an image of `tiny_tfds.pixels` belongs to: its first pixel."""
    return np.round(255 * np.asarray(images)[:, 0, 0, 0]).astype(int)


def test_mnist_comes_back_as_written(data_dir):
    stream = tfds_stream("mnist", data_dir=data_dir, pool_size=20, refresh=3)
    assert stream.num_classes == 10
    assert stream.input_shape == (28, 28, 1)
    pool = stream.pool(0)
    indices = index_of(pool.inputs)
    assert sorted(indices) == list(range(20))
    expected = np.stack([tiny_tfds.pixels(i, (28, 28, 1)) for i in indices])
    np.testing.assert_array_equal(pool.inputs, expected.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(pool.labels, indices % 10)
    assert pool.inputs.dtype == jnp.float32
    assert pool.labels.dtype == jnp.int32


def test_omniglot_is_resized_and_grey(data_dir):
    stream = tfds_stream(
        "omniglot", data_dir=data_dir, pool_size=10, refresh=1, image_size=15, grayscale=True
    )
    assert stream.num_classes == 1623
    assert stream.input_shape == (15, 15, 1)
    pool = stream.pool(0)
    labels = np.asarray(pool.labels)
    assert sorted(labels) == list(range(10))
    raw = np.stack([tiny_tfds.pixels(i, (105, 105, 3)) for i in labels]) / 255
    grey = raw @ [0.299, 0.587, 0.114]
    expected = grey.reshape(10, 15, 7, 15, 7).mean((2, 4))[..., None]  # 105 = 15 x 7
    np.testing.assert_allclose(pool.inputs, expected, atol=1e-6)


def test_a_resumed_omniglot_stream_is_bit_identical(data_dir):
    settings = {"data_dir": data_dir, "pool_size": 6, "refresh": 2, "image_size": 28, "seed": 3}
    stream = tfds_stream("omniglot", **settings)
    for step in range(6):
        expected = stream.pool(step)
    actual = tfds_stream("omniglot", **settings).pool(5)
    np.testing.assert_array_equal(actual.inputs, expected.inputs)
    np.testing.assert_array_equal(actual.labels, expected.labels)


@pytest.mark.parametrize("new_size", [28, 84, 210])
def test_resizing_averages_over_areas(new_size):
    # On the grid of the least common multiple, areas are whole blocks of pixels.
    image = np.random.default_rng(0).random((105, 105))
    fine = math.lcm(105, new_size)
    repeated = image.repeat(fine // 105, 0).repeat(fine // 105, 1)
    block = fine // new_size
    expected = repeated.reshape(new_size, block, new_size, block).mean((1, 3))
    matrix = _area_average(105, new_size)
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected, rtol=1e-5)


def test_a_dataset_holds_every_example_once(data_dir):
    dataset = tfds_dataset("mnist", data_dir=data_dir, validation_fraction=0.25, seed=1)
    train, validation = index_of(dataset.train.inputs), index_of(dataset.validation.inputs)
    assert (len(train), len(validation)) == (15, 5)
    assert sorted([*train, *validation]) == list(range(20))
    assert sorted(index_of(dataset.test.inputs)) == list(range(6))
    np.testing.assert_array_equal(dataset.validation.labels, validation % 10)
    assert dataset.num_classes == 10


def test_tensorflow_is_not_needed(data_dir):
    tfds_stream("mnist", split="train[:50%]", data_dir=data_dir, pool_size=4).pool(0)
    assert "tensorflow" not in sys.modules


def test_a_missing_set_names_the_folder_and_the_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        tfds_stream("mnist", data_dir=str(tmp_path))
    message = str(error.value)
    assert str(tmp_path / "mnist") in message
    (command,) = re.findall(r'python -c "(.*?)"`', message)
    compile(command, "command", "exec")
    assert f"data_dir='{tmp_path}', file_format='array_record'" in command
    assert not (tmp_path / "mnist").exists()


def test_files_without_random_access_are_refused(tmp_path, data_dir):
    info = next((tmp_path.parent / data_dir).glob("mnist/*/dataset_info.json"))
    copy = tmp_path / "mnist" / info.parent.name
    copy.mkdir(parents=True)
    for file in ("dataset_info.json", "features.json"):
        text = (info.parent / file).read_text()
        (copy / file).write_text(text.replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="cannot be read at random; run `pip install tensorflow"):
        tfds_stream("mnist", data_dir=str(tmp_path))


def test_a_missing_package_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets importlib_resources"):
        tfds_dataset("mnist")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mnits", {}, "name='mnits' is not a TFDS set; did you mean .*'mnist'"),
        ("mnist", {"split": "trian"}, "split='trian' .*'train'"),
        ("mnist", {"pool_size": 0}, "tfds_stream: pool_size=0 is below 1"),
        ("mnist", {"image_size": 0}, "tfds_stream: image_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(data_dir, name, settings, message):
    with pytest.raises(ValueError, match=message):
        tfds_stream(name, data_dir=data_dir, **settings)


def test_a_bad_validation_fraction_is_refused(data_dir):
    with pytest.raises(ValueError, match="validation_fraction=1.0 is not between 0 and 1"):
        tfds_dataset("mnist", data_dir=data_dir, validation_fraction=1.0)
