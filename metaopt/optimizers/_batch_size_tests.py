"""How large a batch ought to be, from the gradients of its examples (AdAdaGrad).

    norm:             Σ Var_i(g_i) / (η² ‖ḡ‖²)
    inner product:    Var_i(⟨g_i, ḡ⟩) / (θ² ‖ḡ‖⁴)
    orthogonality:    Σ Var_i(g_i − ⟨g_i, ḡ⟩ ḡ/‖ḡ‖²) / (ν² ‖ḡ‖²)

with ḡ the mean of the batch, unbiased variances and sums over all parameters. A batch smaller than
that is too noisy; the augmented test asks for the larger of the last two. Lau, Liu and Kolar 2024,
arXiv:2402.11215; tests of Byrd et al. 2012 and Bollapragada et al. 2018, arXiv:1710.11258. Any
update rule may follow, AdaGrad and AdaGrad-Norm in the paper. The number before rounding is a noise
scale. Differs from released code: inner products are those of whole gradients, not of one array.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known, quotient

# Requests beyond it are no int32.
_MOST = 2**30

BatchSizeTest = Callable[[PyTree], Int[Array, ""]]


@checked
def norm_test(*, tolerance: Scalar = 0.5, max_size: int = _MOST) -> BatchSizeTest:
    """Asks for a mean gradient whose standard error is at most η of its length.

    Args:
        tolerance: η; released scripts have 0.1 to 0.5. Traced.
        max_size: the most to ask for. Static.

    Returns:
        `(per_example_grads) -> size`: the axis of examples first, at least two of them; never below
        their number. A mean gradient of zero asks for `max_size` if there is noise.

    Raises:
        ValueError: if a setting is not positive; for fewer than two examples.
    """
    _check("norm_test", max_size, tolerance=tolerance)

    def test(per_example_grads: PyTree) -> Int[Array, ""]:
        moments = _moments("norm_test", per_example_grads)
        return _requested(moments.total / tolerance**2, moments.num_examples, max_size)

    return test


@checked
def inner_product_test(*, tolerance: Scalar = 0.5, max_size: int = _MOST) -> BatchSizeTest:
    """Asks for examples whose gradients agree on how fast the loss falls along their mean.

    Args:
        tolerance: θ. Traced.
        max_size: as in `norm_test`. Static.

    Returns:
        As `norm_test`.

    Raises:
        ValueError: as `norm_test`.
    """
    _check("inner_product_test", max_size, tolerance=tolerance)

    def test(per_example_grads: PyTree) -> Int[Array, ""]:
        moments = _moments("inner_product_test", per_example_grads)
        return _requested(moments.along / tolerance**2, moments.num_examples, max_size)

    return test


@checked
def augmented_test(
    *, tolerance: Scalar = 0.5, orthogonal_tolerance: Scalar = 1.0, max_size: int = _MOST
) -> BatchSizeTest:
    """The inner-product test, and one for what is orthogonal to the mean.

    Args:
        tolerance: θ. Traced.
        orthogonal_tolerance: ν. Traced.
        max_size: as in `norm_test`. Static.

    Returns:
        As `norm_test`.

    Raises:
        ValueError: as `norm_test`.
    """
    _check(
        "augmented_test",
        max_size,
        tolerance=tolerance,
        orthogonal_tolerance=orthogonal_tolerance,
    )

    def test(per_example_grads: PyTree) -> Int[Array, ""]:
        moments = _moments("augmented_test", per_example_grads)
        # Pythagoras, example by example; rounding must not make it negative.
        across = jnp.maximum(moments.total - moments.along, 0)
        ratio = jnp.maximum(moments.along / tolerance**2, across / orthogonal_tolerance**2)
        return _requested(ratio, moments.num_examples, max_size)

    return test


@checked
def grow_batch_size(size: int, requested: int, *, sizes: Sequence[int]) -> int:
    """The size of the next batch, for the loop on the host: every new one is compiled once.

    Args:
        size: of this batch.
        requested: what a test asks for; its result as a Python integer.
        sizes: those that are allowed, such as powers of two.

    Returns:
        The least allowed size that is at least `requested` and not below `size`; the largest one
        where none is.

    Raises:
        ValueError: if there are no sizes, or one is below 1.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"grow_batch_size: sizes must be positive numbers, got {sizes!r}.")
    enough = [allowed for allowed in sizes if allowed >= max(size, requested)]
    return min(enough) if enough else max(size, *sizes)


class _Moments(NamedTuple):
    """Variances over ‖ḡ‖²: of whole gradients, and of their parts along the mean."""

    total: Float[Array, ""]
    along: Float[Array, ""]
    num_examples: int


def _moments(name: str, per_example_grads: PyTree) -> _Moments:
    leaves = jax.tree.leaves(per_example_grads)
    num_examples = leaves[0].shape[0] if leaves and leaves[0].ndim else 0
    if num_examples < 2 or any(x.shape[:1] != (num_examples,) for x in leaves):
        raise ValueError(
            f"{name}: per_example_grads must have an axis of at least two examples first, got "
            f"shapes {[x.shape for x in leaves]}."
        )
    dtype = jnp.result_type(jnp.float32, *leaves)
    flat = jnp.concatenate([x.reshape(num_examples, -1).astype(dtype) for x in leaves], axis=1)
    # Ratios do not depend on the scale, squares overflow.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flat), initial=0))
    flat = flat / jnp.where(largest > 0, largest, 1)
    mean = jnp.mean(flat, axis=0)
    length2 = mean @ mean
    deviations = flat - mean[None]
    total = jnp.sum(deviations**2) / (num_examples - 1)
    along = jnp.sum((deviations @ mean) ** 2) / (num_examples - 1)

    def over(variance, by):
        # No noise asks for nothing, noise around a mean of zero for everything.
        return jnp.where((by == 0) & (variance > 0), jnp.inf, quotient(variance, by))

    return _Moments(over(total, length2), over(along, length2**2), num_examples)


def _requested(ratio, num_examples, max_size):
    most = max(num_examples, max_size)
    # Gradients that are no numbers ask for nothing.
    ratio = jnp.where(jnp.isnan(ratio), 0, ratio)
    return jnp.clip(jnp.ceil(ratio), num_examples, most).astype(jnp.int32)


def _check(name: str, max_size: int, **shares) -> None:
    for setting, value in shares.items():
        if known(value) and not value > 0:
            raise ValueError(f"{name}: {setting} must be positive, got {value}.")
    if not 1 <= max_size <= _MOST:
        raise ValueError(f"{name}: max_size must be in [1, {_MOST}], got {max_size}.")
