"""Diverse tasks: batches of tasks drawn by a determinantal point process of fixed size (k-DPP).

    P(S) = det(L_S) / e_k(λ₁, ..., λ_N)    over all sets S of k of the N tasks,

with L a positive semidefinite similarity of tasks, λ its eigenvalues and e_k their elementary
symmetric polynomial: sets of alike tasks have small determinants. The draw takes k eigenvectors,
from the last one on with probability λ_n e_{l-1}(λ_{<n}) / e_l(λ_{≤n}), and then one task after
the other from the projection on their span. Kulesza and Taskar 2012, arXiv:1207.6083, §5.2; for
minibatches Zhang et al. 2017, arXiv:1705.00607. Its gradient is not that of the mean over tasks:
rare kinds of tasks count more, so it is nearer to the mean over kinds and further from the other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metaopt import estimators
from metaopt.core import Data, Estimator, Scalar, Theta, checked
from metaopt.estimators._shared import check_count


class RelatedTasks(NamedTuple):
    """Tasks with their similarities.

    Attributes:
        data: what the loss of a task takes.
        kernel: similarities L; refresh it when what it is made of has changed.
    """

    data: Data
    kernel: Float[Array, "tasks tasks"]


@checked
def task_kernel(
    embeddings: Float[Array, "tasks features"], *, width: Scalar = 1.0
) -> Float[Array, "tasks tasks"]:
    """Gaussian similarities of tasks, in units of their median distance m.

    Args:
        embeddings: what tasks are compared by, such as their meta-gradients.
        width: where most pairs are of one kind, m is a distance within it, and a width of 2 makes
            these tasks alike and others not. Traced.

    Returns:
        `exp(-½ |x - y|² / (width · m)²)`, with m² the median over pairs of different tasks.
    """
    square = jnp.sum((embeddings[:, None] - embeddings[None]) ** 2, axis=-1)
    apart = jnp.where(jnp.eye(len(embeddings), dtype=bool), jnp.nan, square)
    median = jnp.nanmedian(apart)
    return jnp.exp(-0.5 * square / (width**2 * jnp.where(median > 0, median, 1.0)))


def k_dpp(kernel: Float[Array, "n n"], key: PRNGKeyArray, *, size: int) -> Int[Array, " size"]:
    """Draws different indices by a k-DPP.

    Args:
        kernel: a symmetric positive semidefinite matrix of rank k or more, of some hundreds of
            rows: its eigenvalues are computed.
        key: consumed.
        size: k. Static.

    Returns:
        k different indices, in random order.

    Raises:
        ValueError: if `size` is below 1 or above the size of the kernel.
    """
    check_count("k_dpp", size=size)
    count = len(kernel)
    if size > count:
        raise ValueError(f"k_dpp: size={size} exceeds the {count} rows of the kernel; take fewer.")
    key_vectors, key_items = jax.random.split(key)
    values, vectors = jnp.linalg.eigh(kernel)
    # Only ratios count; the scale keeps products of k eigenvalues in range.
    values = jnp.maximum(values, 0.0)
    values = values / jnp.maximum(values.max(), jnp.finfo(values.dtype).tiny)
    chosen = _choose_vectors(values, key_vectors, size)
    span = jnp.where(chosen[None], vectors, 0.0)
    return _choose_items(span @ span.T, key_items, size)


@checked
def diverse_tasks(
    task_loss: Callable[[Theta, Int[Array, ""], Data, PRNGKeyArray], Float[Array, ""]],
    *,
    num_tasks: int = 4,
) -> Estimator:
    """The gradient of the mean loss over a diverse batch of a finite set of tasks.

    Args:
        task_loss: `(theta, index, data, key) -> scalar`, the meta-loss of the task with an index:
            any adaptation, any query loss.
        num_tasks: tasks k in a batch. Static.

    Returns:
        An estimator without state, with `data` of type `RelatedTasks`.

    Raises:
        ValueError: for a count below 1; when traced, if there are fewer tasks.
    """
    check_count("diverse_tasks", num_tasks=num_tasks)

    def meta_loss(theta, data, key):
        key_draw, key_loss = jax.random.split(key)
        drawn = k_dpp(jax.lax.stop_gradient(data.kernel), key_draw, size=num_tasks)
        keys = jax.random.split(key_loss, num_tasks)
        losses = jax.vmap(task_loss, (None, 0, None, 0))(theta, drawn, data.data, keys)
        return losses.mean()

    return estimators.backprop(meta_loss, num_tasks=1)


def _symmetric_polynomials(values, size) -> Float[Array, "n+1 size+1"]:
    """Row n: e_0, ..., e_k of the first n values, by e_l(n) = e_l(n-1) + λ_n e_{l-1}(n-1)."""
    start = jnp.zeros(size + 1, values.dtype).at[0].set(1.0)

    def extend(row, value):
        row = row + value * jnp.concatenate([jnp.zeros(1, row.dtype), row[:-1]])
        return row, row

    return jnp.concatenate([start[None], jax.lax.scan(extend, start, values)[1]])


def _choose_vectors(values, key, size):
    """Which k eigenvectors span the projection."""
    table = _symmetric_polynomials(values, size)
    uniform = jax.random.uniform(key, values.shape, values.dtype)

    def visit(left, n):
        smaller, whole = table[n, jnp.maximum(left - 1, 0)], table[n + 1, left]
        chance = values[n] * smaller / jnp.where(whole > 0, whole, 1.0)
        # The last `left` ones are taken for sure, also where rounding says less.
        take = (left > 0) & ((uniform[n] < chance) | (n < left))
        return left - take, take

    order = jnp.arange(len(values))[::-1]
    return jax.lax.scan(visit, jnp.array(size), order)[1][::-1]


def _choose_items(projection, key, size):
    """One after the other, with probabilities that the ones before have conditioned."""

    def draw(carry, index):
        matrix, free = carry
        weights = jnp.where(free, jnp.maximum(jnp.diag(matrix), 0.0), 0.0)
        logits = jnp.where(
            free, jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny)), -jnp.inf
        )
        item = jax.random.categorical(jax.random.fold_in(key, index), logits)
        pivot = jnp.maximum(matrix[item, item], jnp.finfo(matrix.dtype).tiny)
        matrix = matrix - jnp.outer(matrix[:, item], matrix[item]) / pivot
        return (matrix, free.at[item].set(False)), item

    start = (projection, jnp.ones(len(projection), bool))
    return jax.lax.scan(draw, start, jnp.arange(size))[1]
