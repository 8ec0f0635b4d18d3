"""The two photographs that ship with scikit-learn, cut into patches: real images, no download.

A Chinese temple and a dahlia, 427 x 640 pixels in colour; see `sklearn.datasets.load_sample_images`
for their authors and licences.
"""

import numpy as np

from metaopt.data._check import at_least_one
from metaopt.data._pool import Dataset, Pool, split_pool

_SHAPE = (427, 640)


def photographs(*, size: int = 32, shrink: int = 1, seed: int = 0) -> Dataset:
    """Cuts both photographs into square patches that do not overlap, split at random.

    15 % of the patches are the validation pool, 15 % the test pool, the rest the training pool.

    Args:
        size: height and width of a patch. Static.
        shrink: pixels that are averaged, in each direction, to one pixel before the cut: more of
            the scene in a patch, and fewer patches. Static.
        seed: of the permutation that splits the patches. Static.

    Returns:
        A dataset with float32 inputs [n, size, size, 3] in [0, 1] and int32 labels, 0 for the
        temple and 1 for the flower.

    Raises:
        ImportError: if scikit-learn or Pillow is missing.
        ValueError: if a size is below 1, or fewer than ten patches come out.
    """
    at_least_one("photographs", size=size, shrink=shrink)
    rows, columns = (length // shrink // size for length in _SHAPE)
    if 2 * rows * columns < 10:
        raise ValueError(
            f"photographs: size={size} and shrink={shrink} leave {2 * rows * columns} patches of "
            "427 x 640 pixels; use smaller ones."
        )
    try:
        from sklearn.datasets import load_sample_images

        photos = load_sample_images().images
    except ImportError as error:
        raise ImportError(
            f"photographs: {error}; run `pip install scikit-learn pillow`."
        ) from error
    patches, labels = [], []
    for label, photo in enumerate(photos):
        height, width = rows * size, columns * size
        pixels = photo[: height * shrink, : width * shrink].astype(np.float32) / np.float32(255)
        pixels = pixels.reshape(height, shrink, width, shrink, 3).mean(axis=(1, 3))
        patches.append(pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2))
        labels += [label] * (rows * columns)
    inputs = np.concatenate([patch.reshape(-1, size, size, 3) for patch in patches])
    held_out = max(1, round(0.15 * len(labels)))
    sizes = (len(labels) - 2 * held_out, held_out, held_out)
    pool = Pool(inputs, np.asarray(labels, np.int32))
    return Dataset(*split_pool(pool, sizes, seed=seed), num_classes=2)
