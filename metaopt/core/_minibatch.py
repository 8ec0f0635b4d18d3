"""Adapter: a bilevel problem on whole pools -> the same problem on minibatches.

    inner_loss on B rows of data.inner, outer_loss on B rows of data.outer, rows drawn by the key

So a loss written once, as a mean over the rows it is given, serves methods that sample batches,
methods that go through fixed ones and methods that now and then take all.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from metaopt.core._checked import checked
from metaopt.core._contracts import BilevelProblem, Data, Split


@checked
def minibatched(problem: BilevelProblem, *, batch_size: int) -> BilevelProblem:
    """Evaluates each loss on rows drawn uniformly and with replacement.

    Args:
        problem: losses that are means over the rows, the common leading axis, of `data.inner`
            (inner loss) and `data.outer` (outer loss). The other pool is passed on whole.
        batch_size: rows of a minibatch B. Static.

    Returns:
        A problem on the same `data`, which must be a `Split`. The gradients of its losses are
        unbiased; one key gives one batch, at whatever `params` and `theta`.

    Raises:
        ValueError: if `batch_size < 1`, or, when a loss is called, if `data` is not a `Split`.
    """
    if batch_size < 1:
        raise ValueError(f"minibatched: batch_size must be at least 1, got {batch_size}.")

    def inner_loss(params, theta, data, key):
        key_rows, key_loss = jax.random.split(key)
        rows = _sample(_split(data).inner, key_rows, batch_size)
        return problem.inner_loss(params, theta, data._replace(inner=rows), key_loss)

    def outer_loss(params, theta, data, key):
        key_rows, key_loss = jax.random.split(key)
        rows = _sample(_split(data).outer, key_rows, batch_size)
        return problem.outer_loss(params, theta, data._replace(outer=rows), key_loss)

    return BilevelProblem(problem.init, inner_loss, outer_loss)


def _split(data: Data) -> Split:
    if not isinstance(data, Split):
        raise ValueError(
            f"minibatched: data is a {type(data).__name__}; the losses draw from two pools, "
            "so pass metaopt.core.Split(inner=..., outer=...)."
        )
    return data


def _sample(pool: Data, key: PRNGKeyArray, batch_size: int) -> Any:
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(pool)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"minibatched: the leading axes of a pool are {sorted(sizes)}; "
            "pass arrays with an equal leading axis."
        )
    ((size,),) = sizes
    index = jax.random.randint(key, (batch_size,), 0, size)
    return jax.tree.map(lambda x: x[index], pool)
