"""Normalisers: training losses as bounded meta-losses, comparable between tasks.

Each returns a `TaskFamily.normalise`, `(loss, task_params) -> scalar`, finite for every input;
attach it with `family._replace(normalise=...)`. The inner optimizer never sees a normalised loss.

Which to use: a plain clip where all tasks have the same number of classes, VeLO's affine map where
it differs, a clipped logarithm for regression.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar, checked
from metaopt.data._check import above_zero

Normaliser = Callable[[Float[Array, ""], Any], Float[Array, ""]]


@checked
def clip_classification(num_classes: int) -> Normaliser:
    """Clips a cross-entropy to [0, 1.5 ln C]; NaN and inf become the upper end.

    ln C is the loss of a uniform guess, so the upper end says "clearly worse than not training".

    Args:
        num_classes: C, at least 2. Static.

    Returns:
        `(loss, task_params) -> scalar` in nats, of the dtype of `loss`.

    Raises:
        ValueError: if `num_classes < 2`.
    """
    _at_least_two("clip_classification", num_classes)
    upper = 1.5 * math.log(num_classes)
    return lambda loss, task_params: jnp.clip(_replace_nonfinite(loss, upper), 0.0, upper)


@checked
def velo_classification(num_classes: int) -> Normaliser:
    """VeLO's normaliser of a cross-entropy over C classes.

        n(l) = 10 / ln C · [clip(l, 0, ln 2C) - ln(C / 5)]

    NaN and inf count as ln 2C. Tasks with any number of classes then have the same slope, in
    units of the loss of a uniform guess. Metz et al. 2022, arXiv:2211.09760 and its public code.

    Args:
        num_classes: C, at least 2. Static.

    Returns:
        `(loss, task_params) -> scalar`, of the dtype of `loss`.

    Raises:
        ValueError: if `num_classes < 2`.
    """
    _at_least_two("velo_classification", num_classes)
    upper = math.log(2 * num_classes)
    centre, slope = math.log(num_classes / 5), 10 / math.log(num_classes)

    def normalise(loss, task_params):
        del task_params
        return slope * (jnp.clip(_replace_nonfinite(loss, upper), 0.0, upper) - centre)

    return normalise


@checked
def relative_log(
    reference: Callable[[Any], Scalar], *, floor: Scalar = 1e-3, ceiling: Scalar = 10.0
) -> Normaliser:
    """The logarithm of a loss relative to a typical one: for regression and quadratics.

        n(l) = ln(floor + clip(l / reference, 0, ceiling))

    NaN and inf count as `ceiling`. The logarithm makes tasks of different scales comparable and
    keeps rewarding late progress, down to `floor`, where it stops so that one converged task does
    not outweigh all others. At l = reference, n is about 0.

    Args:
        reference: `(task_params) -> scalar`, a typical loss before training, positive.
        floor: relative loss below which progress hardly counts. Traced.
        ceiling: relative loss from which a task counts as diverged. Traced.

    Returns:
        `(loss, task_params) -> scalar` in [ln floor, ln(floor + ceiling)], of the dtype of `loss`.

    Raises:
        ValueError: if `floor` or `ceiling` is not positive.
    """
    above_zero("relative_log", floor=floor, ceiling=ceiling)

    def normalise(loss, task_params):
        relative = loss / jnp.asarray(reference(task_params)).astype(loss.dtype)
        return jnp.log(floor + jnp.clip(_replace_nonfinite(relative, ceiling), 0.0, ceiling))

    return normalise


def _replace_nonfinite(loss, value):
    return jnp.where(jnp.isfinite(loss), loss, value)


def _at_least_two(function, num_classes):
    if num_classes < 2:
        raise ValueError(f"{function}: num_classes={num_classes} is below 2; there is no choice.")
