"""The small tables that ship with scikit-learn: real data without a download.

iris           150 rows, 4 columns, 3 classes     R. A. Fisher, 1936
wine           178 rows, 13 columns, 3 classes    M. Forina et al., 1988
breast_cancer  569 rows, 30 columns, 2 classes    W. H. Wolberg et al., 1995
diabetes       442 rows, 10 columns, regression   B. Efron et al., 2004
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.data._pool import Dataset, Pool, split_pool

Table = Literal["breast_cancer", "diabetes", "iris", "wine"]
_HELD_OUT = 0.15


def tabular(name: Table, *, seed: int = 0) -> Dataset:
    """Loads a table, split at random: 15 % validation, 15 % test, the rest train.

    Every column has mean 0 and variance 1 over the training rows, and so have the targets of the
    regression set: 1 is the squared error of the constant guess.

    Args:
        name: iris, wine, breast_cancer (classes) or diabetes (regression). Static.
        seed: of the permutation that splits the rows (not stratified). Static.

    Returns:
        A dataset with float32 inputs [n, columns] and int32 labels [n]; for diabetes float32
        labels [n, 1] and `num_classes` 0.

    Raises:
        ImportError: if scikit-learn is missing.
        ValueError: if `name` is unknown.
    """
    if name not in get_args(Table):
        raise ValueError(f"tabular: name={name!r} is unknown; choose from {get_args(Table)}.")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "tabular: scikit-learn is not installed; run `pip install scikit-learn`."
        ) from error
    inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    regression = np.issubdtype(labels.dtype, np.floating)
    labels = labels.astype(np.float32)[:, None] if regression else labels.astype(np.int32)
    held_out = round(_HELD_OUT * len(labels))
    sizes = (len(labels) - 2 * held_out, held_out, held_out)
    parts = split_pool(Pool(inputs.astype(np.float32), labels), sizes, seed=seed)

    scale_inputs = _standardiser(parts[0].inputs)
    scale_labels = _standardiser(parts[0].labels) if regression else lambda values: values
    train, validation, test = (
        Pool(scale_inputs(part.inputs), scale_labels(part.labels)) for part in parts
    )
    return Dataset(train, validation, test, 0 if regression else int(labels.max()) + 1)


def _standardiser(train: jax.Array | np.ndarray) -> Callable[..., jax.Array]:
    # In float64 on the host: some columns have means far above their deviations.
    reference = np.asarray(train, np.float64)
    mean, deviation = reference.mean(axis=0), reference.std(axis=0)
    return lambda values: jnp.asarray(((np.asarray(values) - mean) / deviation).astype(np.float32))
