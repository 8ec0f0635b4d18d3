"""Streams: sets too large for the device as pools that are refreshed each outer step.

The examples form an endless sequence, in a new order every epoch:

    position p  ->  example π_e[p mod n],    e = p div n,    π_e a permutation seeded by (seed, e)

The pool at step t holds positions [t·refresh, t·refresh + pool_size), position p in slot
p mod pool_size: a ring buffer, in which old examples stay where they are. The pool is a function
of the step alone, so a resumed run sees the same data.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.data._check import at_least_one
from metaopt.data._pool import Pool
from metaopt.data._pool import num_examples as size_of


class Stream(NamedTuple):
    """A pool that is refreshed each outer step.

    Attributes:
        pool: `(step) -> Pool`, a pure function of the outer step, a Python int from 0; called
            outside `jit`. Steps in order read only the new examples.
        num_classes: number of classes.
        input_shape: shape of one input.
    """

    pool: Callable[[int], Pool]
    num_classes: int
    input_shape: tuple[int, ...]


def stream(
    read: Callable[[np.ndarray], Pool],
    *,
    num_examples: int,
    num_classes: int,
    pool_size: int = 4096,
    refresh: int = 64,
    seed: int = 0,
) -> Stream:
    """Turns a random-access source of examples into a stream of pools.

    Args:
        read: `(indices) -> Pool`, the examples with these indices as host arrays: pure, and the
            same bits for an example whichever others are read with it.
        num_examples: n, the number of examples that `read` can give.
        num_classes: number of classes.
        pool_size: examples on the device at a time; may exceed `num_examples`.
        refresh: examples replaced each outer step; above `pool_size`, some are never seen.
        seed: of the order of examples.

    Returns:
        A stream. `pool(step)` raises a ValueError for a negative step. The last pool is kept, to
        be updated when the next step is asked for; any other step reads its pool from scratch.

    Raises:
        ValueError: if a size is below 1, or `read` gives a pool with unequal leading axes.
    """
    at_least_one(
        "stream",
        num_examples=num_examples,
        num_classes=num_classes,
        pool_size=pool_size,
        refresh=refresh,
    )

    read_positions = _reader(read, num_examples, pool_size, seed)
    # The only state, replaced as a whole: (first position, pool). It saves reads and never
    # changes a result, so threads may race for it.
    latest: list[tuple[int, Pool] | None] = [None]

    def pool(step: int) -> Pool:
        if step < 0:
            raise ValueError(f"stream: step={step} is negative; outer steps count from 0.")
        first, cached = step * refresh, latest[0]
        if cached is not None and cached[0] <= first < cached[0] + pool_size:
            value = cached[1]
            if first > cached[0]:
                new, slots = read_positions(cached[0] + pool_size, first + pool_size)
                value = jax.tree.map(lambda x, y: x.at[slots].set(y), value, new)
        else:
            new, slots = read_positions(first, first + pool_size)
            order = np.argsort(slots)
            value = jax.tree.map(lambda x: jnp.asarray(x[order]), new)
        latest[0] = (first, value)
        return value

    input_shape = np.shape(read(np.arange(1)).inputs)[1:]
    return Stream(pool, num_classes, input_shape)


def _reader(read, num_examples, pool_size, seed):
    """`(start, stop) -> (examples, slots)`: the examples at these positions of the sequence."""

    @functools.lru_cache(maxsize=2)  # a pool seldom straddles more than one end of an epoch
    def permutation(epoch):
        return np.random.default_rng((seed, epoch)).permutation(num_examples)

    def read_positions(start, stop):
        positions = np.arange(start, stop)
        epochs, offsets = np.divmod(positions, num_examples)
        indices = np.concatenate(
            [permutation(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        )
        examples = read(indices)
        size_of("stream", examples)
        return examples, positions % pool_size

    return read_positions
