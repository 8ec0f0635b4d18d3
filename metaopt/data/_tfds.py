"""Image classification sets of TensorFlow Datasets, read without TensorFlow.

The files must be in a random-access format (ArrayRecord). Nothing is ever downloaded here: an
error names the command that prepares a set.
"""

import difflib
import functools
from typing import Any, NamedTuple

import numpy as np

from metaopt.data._check import at_least_one
from metaopt.data._class_pool import ClassPool, by_class
from metaopt.data._pool import Dataset, Pool, split_pool
from metaopt.data._stream import Stream, stream

# ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class _Source(NamedTuple):
    """Random access to one split."""

    read: Any  # (indices) -> Pool of host arrays
    num_examples: int
    num_classes: int


def tfds_stream(
    name: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    pool_size: int = 4096,
    refresh: int = 64,
    image_size: int | None = None,
    grayscale: bool = False,
    seed: int = 0,
) -> Stream:
    """Streams a TFDS image classification set as pools on the device.

    Args:
        name: the TFDS name, such as `"mnist"`, `"fashion_mnist"`, `"cifar10"`, `"omniglot"`; with
            a version or a config if need be (`"mnist:3.0.1"`).
        split: any TFDS split, such as `"train"` or `"train[:50%]"`.
        data_dir: where prepared sets lie; None is TFDS's own default.
        pool_size: examples on the device at a time.
        refresh: examples replaced each outer step.
        image_size: height and width to resize to, by averaging over areas; None keeps the size.
        grayscale: whether to turn three channels into one (ITU-R BT.601 luma).
        seed: of the order of examples.

    Returns:
        A stream with float32 inputs in [0, 1] and int32 labels.

    Raises:
        ImportError: if tensorflow-datasets is missing.
        FileNotFoundError: if the set is not on disk; the message holds the command that makes it.
        ValueError: if the name or split is unknown, a size is below 1, the set is not one of
            labelled images, its files are not random-access, or its images vary in size and
            `image_size` is None.
    """
    at_least_one("tfds_stream", pool_size=pool_size, refresh=refresh)
    source = _open("tfds_stream", name, split, data_dir, image_size, grayscale)
    return stream(
        source.read,
        num_examples=source.num_examples,
        num_classes=source.num_classes,
        pool_size=pool_size,
        refresh=refresh,
        seed=seed,
    )


def tfds_dataset(
    name: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    validation_fraction: float = 0.1,
    data_dir: str | None = None,
    image_size: int | None = None,
    grayscale: bool = False,
    seed: int = 0,
) -> Dataset:
    """Loads a whole TFDS image classification set into memory.

    Args:
        name: as in `tfds_stream`.
        train_split: TFDS split that gives the training and validation pools.
        test_split: TFDS split that gives the test pool.
        validation_fraction: share of `train_split`, chosen by `seed`, that becomes the validation
            pool; at least one example of each remains.
        data_dir: as in `tfds_stream`.
        image_size: as in `tfds_stream`.
        grayscale: as in `tfds_stream`.
        seed: of the permutation that carves out the validation pool.

    Returns:
        A dataset with float32 inputs in [0, 1] and int32 labels.

    Raises:
        ImportError: as in `tfds_stream`.
        FileNotFoundError: as in `tfds_stream`.
        ValueError: as in `tfds_stream`; or if `validation_fraction` is not in (0, 1), or there
            are fewer than two training examples to share out.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"tfds_dataset: validation_fraction={validation_fraction} is not between 0 and 1."
        )
    train, test = (
        _open("tfds_dataset", name, split, data_dir, image_size, grayscale)
        for split in (train_split, test_split)
    )
    if train.num_examples < 2:
        raise ValueError(
            f"tfds_dataset: train_split={train_split!r} of {name!r} has {train.num_examples} "
            "example; two pools need at least two."
        )
    num_validation = round(validation_fraction * train.num_examples)
    num_validation = min(max(num_validation, 1), train.num_examples - 1)
    sizes = (train.num_examples - num_validation, num_validation)
    train_pool, validation_pool = split_pool(_read_all(train), sizes, seed=seed)
    (test_pool,) = split_pool(_read_all(test), (test.num_examples,), seed=seed)
    return Dataset(train_pool, validation_pool, test_pool, train.num_classes)


def tfds_class_pool(
    name: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    image_size: int | None = None,
    grayscale: bool = False,
) -> ClassPool:
    """Loads a split of a TFDS image classification set with one row of examples per class.

    The splits of Omniglot share no characters: "train" holds the base classes and "test" the novel
    ones; both are ink at 0 on paper at 1.

    Args:
        name: as in `tfds_stream`; "omniglot" is the usual one.
        split: as in `tfds_stream`.
        data_dir: as in `tfds_stream`.
        image_size: as in `tfds_stream`; 28 is usual for Omniglot.
        grayscale: as in `tfds_stream`.

    Returns:
        A pool on the device, float32 in [0, 1]; see `by_class`.

    Raises:
        ImportError: as in `tfds_stream`.
        FileNotFoundError: as in `tfds_stream`.
        ValueError: as in `tfds_stream`.
    """
    source = _open("tfds_class_pool", name, split, data_dir, image_size, grayscale)
    return by_class(_read_all(source))


def _read_all(source: _Source) -> Pool:
    return source.read(np.arange(source.num_examples))


def _open(function, name, split, data_dir, image_size, grayscale) -> _Source:
    if image_size is not None:
        at_least_one(function, image_size=image_size)
    builder = _builder(function, name, data_dir)
    image_key, label_key = _keys(function, name, builder.info, image_size, grayscale)
    try:
        source = builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{function}: split={split!r} of {name!r} cannot be read ({error}); the set has "
            f"{sorted(builder.info.splits)}."
        ) from error
    if len(source) == 0:
        raise ValueError(f"{function}: split={split!r} of {name!r} is empty; choose another.")

    def read(indices) -> Pool:
        # One image at a time: in a batched product, the rounding depends on the batch.
        examples = source.__getitems__([int(i) for i in indices])
        images = [_prepare(e[image_key], image_size, grayscale) for e in examples]
        labels = [e[label_key] for e in examples]
        return Pool(np.stack(images), np.asarray(labels, np.int32))

    return _Source(read, len(source), builder.info.features[label_key].num_classes)


def _builder(function, name, data_dir) -> Any:
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import constants, file_adapters
    except ImportError as error:
        raise ImportError(
            f"{function}: TensorFlow Datasets cannot be imported ({error}); run "
            "`pip install tensorflow-datasets importlib_resources pillow`."
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
        raise ValueError(
            f"{function}: name={name!r} is not a TFDS set; did you mean {near}?"
        ) from error

    # TensorFlow is needed once, to write the files, and never to read them.
    command = (
        f'`pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{{}}', file_format='array_record')"
        '.download_and_prepare()"`'
    )
    folder = data_dir or constants.DATA_DIR
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"{function}: {name!r} is not in {builder.data_path}. metaopt does not download; put "
            f"the prepared set there, or pass data_dir=, or run {command.format(folder)} once."
        )
    random_access = file_adapters.FileFormat.with_random_access()
    if not builder.info.available_file_formats() & random_access:
        raise ValueError(
            f"{function}: {name!r} in {builder.data_path} has files that cannot be read at "
            f"random; run {command.format(f'{folder}_array_record')} and pass "
            f"data_dir={f'{folder}_array_record'!r}."
        )
    return builder


def _keys(function, name, info, image_size, grayscale) -> tuple[str, str]:
    """The names of the image and the class in an example."""
    import tensorflow_datasets as tfds

    image_key, label_key = (info.supervised_keys or ("image", "label"))[:2]
    features = dict(info.features.items())
    image, label = features.get(image_key), features.get(label_key)
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise ValueError(f"{function}: {name!r} is not a set of labelled images: {features}.")
    shape: Any = image.shape
    if image_size is None and None in shape[:2]:
        raise ValueError(
            f"{function}: the images of {name!r} vary in size, {shape}; pass image_size=."
        )
    if grayscale and shape[2] not in (1, 3):
        raise ValueError(
            f"{function}: grayscale=True needs 1 or 3 channels; the images of {name!r} have shape "
            f"{shape}."
        )
    return image_key, label_key


def _prepare(image: np.ndarray, image_size: int | None, grayscale: bool) -> np.ndarray:
    pixels = image.astype(np.float32) / np.float32(255)
    if grayscale and pixels.shape[-1] == 3:
        pixels = (pixels * _LUMA).sum(axis=-1, keepdims=True)
    if image_size is not None:
        rows = _area_average(pixels.shape[0], image_size)
        columns = _area_average(pixels.shape[1], image_size)
        pixels = np.einsum("ih,hwc,jw->ijc", rows, pixels, columns, optimize=True)
    # Weights that sum to 1 leave [0, 1] by a rounding error.
    return np.clip(pixels, 0, 1, dtype=np.float32)


@functools.lru_cache(maxsize=16)
def _area_average(size: int, new_size: int) -> np.ndarray:
    """Row i averages over [i, i + 1) · size / new_size: resizing is one product per axis."""
    edges = np.arange(new_size + 1) * (size / new_size)
    low = np.maximum(edges[:-1, None], np.arange(size)[None])
    high = np.minimum(edges[1:, None], np.arange(size)[None] + 1)
    return (np.maximum(high - low, 0) * (new_size / size)).astype(np.float32)
