"""A labelled pool as one row of examples per class, from which episodes are drawn by index."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metaopt.data._pool import Pool, num_examples


class ClassPool(NamedTuple):
    """Examples of C classes, equally many of each.

    Attributes:
        inputs: [C, examples per class, ...], float32.
    """

    inputs: Float[Array | np.ndarray, "classes examples ..."]


def by_class(pool: Pool) -> ClassPool:
    """Sorts a labelled pool by class, on the host.

    Args:
        pool: integer labels; any order. Classes keep the order of their labels and examples the
            order of the pool; of every class as many are kept as the rarest one has.

    Returns:
        A pool on the device.

    Raises:
        ValueError: if the pool is empty, its labels are not integers of shape [n], or numbers of
            inputs and labels differ.
    """
    num_examples("by_class", pool)
    labels = np.asarray(pool.labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"by_class: labels have shape {labels.shape} and dtype {labels.dtype}; "
            "pass one integer class per example."
        )
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    fewest = min(len(row) for row in rows)
    index = np.stack([row[:fewest] for row in rows])
    return ClassPool(jax.tree.map(jnp.asarray, np.asarray(pool.inputs)[index]))
