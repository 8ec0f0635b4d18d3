"""A pool of examples on the device, and the draw of a minibatch from it.

Data are arguments: a pool is passed through `jit`, never closed over, because an array that a
jitted function closes over is baked into the program.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from metaopt.data._check import at_least_one

Tree = TypeVar("Tree")


class Pool(NamedTuple):
    """Examples with an equal leading axis.

    Attributes:
        inputs: float32; images have shape [n, height, width, channels] and values in [0, 1].
        labels: int32 classes of shape [n]; in regression sets, float32 targets.
    """

    inputs: Float[jax.Array | np.ndarray, "n ..."]
    labels: Shaped[jax.Array | np.ndarray, "n ..."]


class Dataset(NamedTuple):
    """Three disjoint pools. A host-side container: pass one of its pools through `jit`.

    Attributes:
        train: what inner training draws from.
        validation: what choices are made on.
        test: what is reported.
        num_classes: number of classes; 0 in regression sets.
    """

    train: Pool
    validation: Pool
    test: Pool
    num_classes: int


def sample_batch(pool: Tree, key: PRNGKeyArray, *, batch_size: int) -> Tree:
    """Draws `batch_size` examples from a pool, uniformly and with replacement.

    With replacement, so that the draw is one gather, independent of earlier draws, whatever the
    sizes.

    Args:
        pool: any pytree of arrays with an equal leading axis.
        key: consumed.
        batch_size: static; may exceed the size of the pool.

    Returns:
        The structure of `pool`, every leading axis of length `batch_size`.

    Raises:
        ValueError: if `batch_size < 1`, or the pool is empty or its leading axes differ.
    """
    at_least_one("sample_batch", batch_size=batch_size)
    index: Int[jax.Array, " batch"] = jax.random.randint(
        key, (batch_size,), 0, num_examples("sample_batch", pool)
    )
    return jax.tree.map(lambda x: x[index], pool)


def num_examples(function: str, pool) -> int:
    """The common leading axis of a pool; raises in the name of `function` if there is none."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(pool)]
    if not shapes or () in shapes:
        raise ValueError(
            f"{function}: the pool has shapes {shapes}; pass arrays with an equal leading axis."
        )
    sizes = {shape[0] for shape in shapes}
    if len(sizes) > 1:
        raise ValueError(
            f"{function}: the leading axes of the pool differ, with shapes {shapes}; "
            "pass as many labels as inputs."
        )
    (size,) = sizes
    if size == 0:
        raise ValueError(f"{function}: the pool is empty, with shapes {shapes}; add examples.")
    return size


def split_pool(pool: Pool, sizes: tuple[int, ...], *, seed: int) -> tuple[Pool, ...]:
    """Disjoint device-resident parts of a pool of host arrays, by a seeded permutation."""
    order = np.random.default_rng(seed).permutation(len(pool.labels))
    parts = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    return tuple(jax.tree.map(lambda x, part=part: jnp.asarray(x[part]), pool) for part in parts)
