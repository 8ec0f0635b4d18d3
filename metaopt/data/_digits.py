"""The handwritten digits that ship with scikit-learn: real data without a download.

1,797 images of 8 x 8 pixels in 17 grey levels, 10 classes; the test part of the UCI set of
E. Alpaydin and C. Kaynak, 1998, doi 10.24432/C50P49.
"""

import numpy as np

from metaopt.data._pool import Dataset, Pool, split_pool

_SIZES = (1200, 200, 397)


def digits(*, seed: int = 0) -> Dataset:
    """Loads the 8 x 8 digits, split at random into train 1200, validation 200 and test 397.

    Args:
        seed: of the permutation that splits the examples (not stratified). Static.

    Returns:
        A dataset of 10 classes; inputs float32 [n, 8, 8, 1] in [0, 1], labels int32 [n].

    Raises:
        ImportError: if scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits: scikit-learn is not installed; run `pip install scikit-learn`."
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = (np.reshape(pixels, (-1, 8, 8, 1)) / 16).astype(np.float32)
    pool = Pool(images, np.asarray(labels, np.int32))
    return Dataset(*split_pool(pool, _SIZES, seed=seed), num_classes=10)
