"""Settings of an adaptation, chosen on validation tasks by Bayesian optimization.

    EI(x) = (f* - μ) Φ(z) + σ φ(z),    z = (f* - μ) / σ

for a Gaussian process (μ, σ) of the score over the logarithms of the settings and f* the lowest
score so far; the next trial has the highest EI among random candidates. A trial adapts to
validation tasks; its number of steps is the mean over tasks of where each one's measure is lowest,
rounded, and its score the mean measure there. Jones et al. 1998, doi:10.1023/A:1008306431147; for
learned initial parameters by Hendryx et al. 2019, arXiv:1912.06290, §4.3, who stop every task early
instead of looking at all steps.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Data, Theta


class AdaptationTrial(NamedTuple):
    """Settings that were tried.

    Attributes:
        settings: their values.
        num_steps: the number of steps that suits them.
        score: mean measure of the validation tasks after as many; lower is better.
    """

    settings: dict[str, float]
    num_steps: int
    score: float


class AdaptationChoice(NamedTuple):
    """What `tune_adaptation` chooses.

    Attributes:
        best: the trial with the lowest score.
        trials: all of them, in order.
    """

    best: AdaptationTrial
    trials: tuple[AdaptationTrial, ...]


def tune_adaptation(
    curves: Callable[..., Float[Array, "num_tasks num_steps+1"]],
    space: Mapping[str, tuple[float, float]],
    theta: Theta,
    data: Data,
    key: PRNGKeyArray,
    *,
    num_trials: int = 20,
    num_random: int = 6,
) -> AdaptationChoice:
    """Chooses settings and the number of steps; `curves` is compiled once.

    Host-side orchestration like `metaopt.eval.tune`. The tasks of `key` are validation tasks, the
    same for every trial; report on others.

    Args:
        curves: `(theta, data, key, **settings) -> measures`, such as from
            `metaopt.algorithms.adaptation_curves`; the first column is that without a step.
        space: for each setting the lowest and the highest value, both positive.
        theta: what is adapted.
        data: the data of `curves`.
        key: randomness of the validation tasks and of the search.
        num_trials: settings to try. Static.
        num_random: how many of them are spread over the space at first. Static.

    Returns:
        The choice. Measures that are not finite count as infinitely bad.

    Raises:
        ValueError: if the space is empty, a range of it is, or `1 <= num_random <= num_trials` does
            not hold.
    """
    low, high = _logarithms(space)
    if not 1 <= num_random <= num_trials:
        raise ValueError(
            f"tune_adaptation: need 1 <= num_random <= num_trials, got num_random={num_random}, "
            f"num_trials={num_trials}."
        )
    key_tasks, key_search = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_search)).ravel())
    # One point in each of as many slices of every axis.
    slices = np.stack([rng.permutation(num_random) for _ in low], axis=1)
    points = list((slices + rng.random(slices.shape)) / num_random)
    run = jax.jit(curves)

    trials = []
    for index in range(num_trials):
        if index >= num_random:
            points.append(_proposal(np.stack(points), [trial.score for trial in trials], rng))
        values = np.exp(low + points[index] * (high - low))
        settings = {name: float(x) for name, x in zip(space, values, strict=True)}
        measures = run(theta, data, jax.random.clone(key_tasks), **settings)
        trials.append(AdaptationTrial(settings, *_steps_and_score(measures)))
    return AdaptationChoice(min(trials, key=lambda trial: trial.score), tuple(trials))


def _logarithms(space) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the ranges."""
    if not space:
        raise ValueError("tune_adaptation: space={} has no setting; name at least one.")
    for name, (low, high) in space.items():
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"tune_adaptation: space[{name!r}]=({low}, {high}) must be positive and increasing."
            )
    low, high = np.log(np.asarray(list(space.values()), float)).T
    return low, high


def _steps_and_score(measures: Any) -> tuple[int, float]:
    """The mean of the tasks' best numbers of steps, and the mean measure after as many."""
    measures = np.asarray(measures, np.float64)
    measures = np.where(np.isfinite(measures), measures, np.inf)
    num_steps = round(float(measures.argmin(axis=1).mean()))
    return num_steps, float(measures[:, num_steps].mean())


def _proposal(points: np.ndarray, scores: list[float], rng: np.random.Generator) -> np.ndarray:
    """Where the score is expected to improve most, in the unit cube."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    values = np.asarray(scores)
    if not np.isfinite(values).any():
        return rng.random(points.shape[1])
    # Losses of diverging settings span decades, which the surrogate would be about: they are cut
    # as far above the median as the best score is below it.
    finite = values[np.isfinite(values)]
    values = np.minimum(values, 2 * np.median(finite) - finite.min())
    lengths: Any = np.full(points.shape[1], 0.3)
    smooth = Matern(lengths, (0.05, 5.0), nu=2.5)
    process = GaussianProcessRegressor(
        ConstantKernel(1.0, (1e-2, 1e2)) * smooth + WhiteKernel(1e-3, (1e-6, 1e-1)),
        normalize_y=True,
        random_state=0,
    )
    candidates = rng.random((1000, points.shape[1]))
    with warnings.catch_warnings():
        # Lengths at the ends of their range are as good as any with so few points.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points, values)
    mean, deviation = process.predict(candidates, return_std=True)
    return candidates[np.argmax(expected_improvement(mean, deviation, values.min()))]


def expected_improvement(mean: Any, deviation: Any, best: float) -> np.ndarray:
    """EI of normal scores, for minimisation."""
    from scipy.stats import norm

    deviation = np.maximum(deviation, 1e-12)
    z = (best - mean) / deviation
    return (best - mean) * norm.cdf(z) + deviation * norm.pdf(z)
