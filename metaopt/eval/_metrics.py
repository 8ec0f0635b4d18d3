"""Scores of learning curves, computed on the host in float64.

    smooth    m_t = β m_{t-1} + (1-β) ℓ_t,   curve_t = m_t / (1 - βᵗ)
    speed-up  (steps the reference needs to a loss) / (steps the contender needs to it)
    envelope  e_t = min_{s≤t} min_lr smooth(mean over seeds of ℓ)_s
    IQM       the mean of the middle half of all scores

The envelope is the baseline of VeLO (Metz et al. 2022, arXiv:2211.09760); the interquartile mean
with a stratified bootstrap follows Agarwal et al. 2021, arXiv:2108.13264, §4. Differs from the
latter: a score on the border of the middle half counts with the fraction that lies inside.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import ArrayLike


class Speedup(NamedTuple):
    """How much sooner a contender reaches the reference's final loss. The seed axis is first.

    Attributes:
        ratio: reference steps over contender steps; an upper bound where censored.
        steps: contender steps, 1 … T, or T + 1 where censored.
        censored: whether the contender did not get there within its T steps.
    """

    ratio: np.ndarray
    steps: np.ndarray
    censored: np.ndarray


class Interval(NamedTuple):
    """A point estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def smooth(losses: ArrayLike, *, decay: float = 0.95) -> np.ndarray:
    """Debiased exponential moving average along the last axis: the first value stays.

    Args:
        losses: `[..., steps]`. A NaN makes all later values NaN.
        decay: β; the average covers about 1/(1-β) steps.

    Returns:
        The smoothed losses, same shape, float64.

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"smooth: decay must be in [0, 1), got {decay}.")
    losses = np.asarray(losses, np.float64)
    if decay == 0:
        return losses  # the recursion would turn an inf into 0 · inf
    smoothed = np.empty_like(losses)
    average, weight = np.zeros(losses.shape[:-1]), 0.0
    for step in range(losses.shape[-1]):
        average = decay * average + (1 - decay) * losses[..., step]
        weight = decay * weight + (1 - decay)
        smoothed[..., step] = average / weight
    return smoothed


def steps_to(losses: ArrayLike, target: ArrayLike, *, decay: float = 0.95) -> np.ndarray:
    """Steps until the smoothed curve is first at or below a target.

    Args:
        losses: `[..., steps]`.
        target: scalar, or one target for every curve, `[...]`.
        decay: as in `smooth`; 0 takes the curve as it is.

    Returns:
        Integers `[...]`, from 1 to T, or T + 1 where the target is not reached (censored).
    """
    reached = smooth(losses, decay=decay) <= np.asarray(target, np.float64)[..., None]
    return np.where(reached.any(-1), reached.argmax(-1) + 1, reached.shape[-1] + 1)


def speedup_over(losses: ArrayLike, reference: ArrayLike, *, decay: float = 0.95) -> Speedup:
    """Steps a reference needs to its own final smoothed loss over the steps a contender needs.

    The target is the reference's final loss; its steps are those until it is *first* that low, so
    that a curve against itself scores 1 also when noise takes it there early.

    Args:
        losses: `[seeds, steps]`, the contender's (normalised) losses.
        reference: `[seeds, steps]`, the reference's on the same seeds.
        decay: as in `smooth`.

    Returns:
        One speed-up for each seed. Censored runs count with T + 1 steps.

    Raises:
        ValueError: if the numbers of seeds differ.
    """
    losses, reference = np.asarray(losses), np.asarray(reference)
    if losses.shape[:-1] != reference.shape[:-1]:
        raise ValueError(
            f"speedup_over: the contender has seeds {losses.shape[:-1]}, the reference "
            f"{reference.shape[:-1]}; run both on the same seeds."
        )
    target = smooth(reference, decay=decay)[..., -1]
    steps = steps_to(losses, target, decay=decay)
    reference_steps = steps_to(reference, target, decay=decay)
    return Speedup(reference_steps / steps, steps, steps > losses.shape[-1])


def envelope(losses: ArrayLike, *, decay: float = 0.95) -> np.ndarray:
    """The best loss a baseline has reached after t steps at any learning rate (VeLO).

    Args:
        losses: `[learning_rates, seeds, steps]`, run longer than what it will judge.
        decay: as in `smooth`.

    Returns:
        `[steps]`, non-increasing; inf where no learning rate was finite yet.
    """
    curves = smooth(np.asarray(losses, np.float64).mean(axis=-2), decay=decay)
    finite = np.where(np.isfinite(curves), curves, np.inf)
    return np.minimum.accumulate(finite.min(axis=0))


def speedup_over_envelope(loss: ArrayLike, envelope: ArrayLike, *, num_steps: int) -> np.ndarray:
    """Steps the envelope needs to reach a loss over the steps that were used to reach it (VeLO).

    Args:
        loss: final losses of the evaluated runs, any shape.
        envelope: `[steps]`, from `envelope`.
        num_steps: steps the evaluated runs took.

    Returns:
        Scores, the shape of `loss`; 0 for a non-finite loss. Steps are interpolated linearly
        between those at which the envelope improves. A loss below the whole envelope is censored
        at the score of the envelope's lowest level; one above it all gets that of the highest.

    Raises:
        ValueError: if the envelope is nowhere finite.
    """
    loss, envelope = np.asarray(loss, np.float64), np.asarray(envelope, np.float64)
    if not np.isfinite(envelope).any():
        raise ValueError(
            "speedup_over_envelope: the envelope is nowhere finite; add smaller learning rates."
        )
    # The first step at each level; negated, because levels descend and `interp` wants ascent.
    levels, first = np.unique(-envelope, return_index=True)
    improved = np.isfinite(levels)
    steps = np.interp(-np.nan_to_num(loss), levels[improved], first[improved] + 1.0)
    return np.where(np.isfinite(loss), steps / num_steps, 0.0)


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean of all scores together, with fractional weights at the quartiles.

    Args:
        scores: any shape, at least one score.

    Returns:
        The mean of the middle half. Scores of ±inf count when they are inside it.

    Raises:
        ValueError: if there is no score.
    """
    scores = np.asarray(scores, np.float64).ravel()
    if scores.size == 0:
        raise ValueError("iqm: there are no scores; pass at least one.")
    return float(_iqm(scores[None])[0])


def _iqm(scores):
    """Along the last axis of `[replicates, scores]`."""
    size = scores.shape[-1]
    edges = np.arange(size + 1)
    inside = np.clip(edges, size / 4, 3 * size / 4)
    weights = np.diff(inside)
    kept = weights > 0
    return np.sort(scores, axis=-1)[:, kept] @ weights[kept] / (size / 2)


def iqm_interval(
    scores: ArrayLike,
    key: PRNGKeyArray,
    *,
    num_replicates: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the interquartile mean by a stratified bootstrap.

    Every replicate resamples the seeds within each task and leaves the tasks as they are.

    Args:
        scores: `[tasks, seeds]`.
        key: randomness of the resampling.
        num_replicates: bootstrap replicates. Static.
        level: coverage aimed at, in (0, 1).

    Returns:
        The interquartile mean and its interval.

    Raises:
        ValueError: if `scores` is not `[tasks, seeds]` or `level` is outside (0, 1).
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2:
        raise ValueError(
            f"iqm_interval: scores must be [tasks, seeds], got shape {scores.shape}; add an axis."
        )
    if not 0 < level < 1:
        raise ValueError(f"iqm_interval: level must be in (0, 1), got {level}.")
    num_tasks, num_seeds = scores.shape
    shape = (num_replicates, num_tasks, num_seeds)
    seeds = np.asarray(jax.random.randint(key, shape, 0, num_seeds))
    resampled = scores[np.arange(num_tasks)[:, None], seeds]
    means = _iqm(resampled.reshape(num_replicates, -1))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(iqm(scores), float(low), float(high))
