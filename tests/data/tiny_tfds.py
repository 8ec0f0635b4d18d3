"""Small TFDS sets on disk, under the names, features and layout of the real ones.

Written as ArrayRecord without TensorFlow: images must reach the writer as Pillow images.
"""

import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered


def pixels(index: int, shape) -> np.ndarray:
    """The image of example `index`, which the tests compute again."""
    image = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    image[0, 0] = index % 256  # unique below 256 examples
    return image


def write(name: str, data_dir, *, split_sizes: dict[str, int], file_format="array_record"):
    """Writes `split_sizes` examples in every split; labels are the index modulo the classes."""
    real = type(tfds.builder(name, data_dir=data_dir))
    features = tfds.builder(name, data_dir=data_dir).info.features

    def example(index):
        values = {}
        for key, feature in features.items():
            if isinstance(feature, tfds.features.Image):
                values[key] = _png(pixels(index, feature.shape))
            elif isinstance(feature, tfds.features.ClassLabel):
                values[key] = index % feature.num_classes
            else:
                values[key] = index
        return values

    with registered.skip_registration():

        class Tiny(real):
            pkg_dir_path = real.pkg_dir_path

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(size) for split, size in split_sizes.items()}

            def _generate_examples(self, size):
                for index in range(size):
                    yield index, example(index)

    Tiny.name = name
    builder = Tiny(data_dir=data_dir, file_format=file_format)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        builder.download_and_prepare()
    shutil.rmtree(Path(data_dir) / "downloads", ignore_errors=True)


def _png(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    image.format = "PNG"
    return image
