"""A fair comparison: same grid, schedule, tuning seeds and evaluation seeds for every contender."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from metaopt.core import TaskFamily
from metaopt.eval._curves import Curves, learning_curve
from metaopt.eval._metrics import Interval, iqm_interval, speedup_over
from metaopt.eval._tune import Baseline, Metric, TuneResult, check_grid, log_grid, tune


class Result(NamedTuple):
    """One contender on the evaluation seeds.

    Attributes:
        name: the contender's.
        learning_rate: the tuned or fixed one.
        tuning: how it was chosen, with its flag `at_edge`; None for a fixed learning rate.
        num_configurations: learning rates tried on the tuning seeds, 1 for a fixed one.
        curves: of the evaluation seeds, on the host.
        mean_loss: normalised training loss, mean over steps and seeds.
        final_loss: normalised training loss at the end over many batches, mean over seeds.
        validation_loss: normalised validation loss at the end, mean over seeds.
        validation_accuracy: at the end, mean over seeds; None if the family reports none.
        failure_rate: fraction of seeds that failed.
        steps_to_reference: `[seeds]`, steps until the smoothed loss is at or below the reference's
            final one on the same seed; `num_steps + 1` where censored or failed.
        censored: `[seeds]`, whether it did not get there, or failed.
        speedup: `[seeds]`, see `speedup_over`; an upper bound where censored, 0 where failed.
        speedup_iqm: its interquartile mean over seeds with a 95 % bootstrap interval.
    """

    name: str
    learning_rate: float
    tuning: TuneResult | None
    num_configurations: int
    curves: Curves
    mean_loss: float
    final_loss: float
    validation_loss: float
    validation_accuracy: float | None
    failure_rate: float
    steps_to_reference: np.ndarray
    censored: np.ndarray
    speedup: np.ndarray
    speedup_iqm: Interval


class Protocol(NamedTuple):
    """What all contenders of a comparison share; the fields are arguments of `compare`."""

    reference: str
    num_steps: int
    grid: tuple[float, ...]
    metric: Metric
    num_tuning_seeds: int
    num_seeds: int
    eval_every: int | None
    num_eval_batches: int


class Comparison(NamedTuple):
    """The contenders' results, in the order given, and the protocol they share."""

    results: tuple[Result, ...]
    protocol: Protocol


def compare(
    contenders: Sequence[Baseline],
    family: TaskFamily,
    data: Any,
    key: PRNGKeyArray,
    *,
    num_steps: int,
    grid: Sequence[float] = log_grid(-4, 1),
    num_tuning_seeds: int = 5,
    num_seeds: int = 5,
    eval_every: int | None = None,
    num_eval_batches: int = 16,
    metric: Metric = "mean",
    reference: str | None = None,
) -> Comparison:
    """Tunes every contender on tuning seeds and evaluates it once on evaluation seeds.

    Host-side orchestration like a training driver: it compiles by itself, two programs for each
    contender. Tuning and evaluation draw from different keys; all contenders share both, so that
    differences are paired by task, initial parameters and batches.

    Args:
        contenders: baselines and learned optimizers; fixed learning rates are not tuned.
        family: where tasks come from.
        data: the family's pool; a `Split` adds a validation pool.
        key: randomness of tuning, evaluation and bootstrap.
        num_steps: inner steps. Static.
        grid: increasing positive learning rates, the same for everyone.
        num_tuning_seeds: seeds of the choice of the learning rate. Static.
        num_seeds: seeds of the report. Static.
        eval_every: as in `learning_curve`. Static.
        num_eval_batches: as in `learning_curve`. Static.
        metric: what tuning minimises, as in `tune`.
        reference: the contender whose final loss is the speed-up's target, by default the first.
            Where it fails itself the speed-up means nothing; see its `failure_rate`.

    Returns:
        The comparison. Losses are normalised by the family, so finite after divergence.

    Raises:
        ValueError: if there is no contender, a name appears twice, the reference is unknown, or as
            in `tune` and `learning_curve`.
    """
    names = [contender.name for contender in contenders]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"compare: contenders={names} must be some, with different names.")
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise ValueError(f"compare: reference={reference!r} is unknown; choose from {names}.")
    check_grid("compare", grid)
    protocol = Protocol(
        reference,
        num_steps,
        tuple(grid),
        metric,
        num_tuning_seeds,
        num_seeds,
        eval_every,
        num_eval_batches,
    )
    key_tune, key_evaluate, key_bootstrap = jax.random.split(key, 3)
    runs = [
        _tune_and_evaluate(contender, family, data, key_tune, key_evaluate, protocol)
        for contender in contenders
    ]
    target = runs[names.index(reference)][-1]
    return Comparison(tuple(_result(*run, target, key_bootstrap) for run in runs), protocol)


def _tune_and_evaluate(contender, family, data, key_tune, key_evaluate, protocol):
    """Name, learning rate, tuning and curves of one contender."""
    tuning, learning_rate = None, contender.learning_rate
    if learning_rate is None:
        tuning = tune(
            contender.make,
            family,
            data,
            jax.random.clone(key_tune),
            num_steps=protocol.num_steps,
            grid=protocol.grid,
            num_seeds=protocol.num_tuning_seeds,
            num_eval_batches=protocol.num_eval_batches,
            metric=protocol.metric,
        )
        learning_rate = tuning.best

    @jax.jit
    def run(learning_rate, data, key):
        return learning_curve(
            family,
            contender.make(learning_rate),
            data,
            key,
            num_steps=protocol.num_steps,
            num_seeds=protocol.num_seeds,
            eval_every=protocol.eval_every,
            num_eval_batches=protocol.num_eval_batches,
        )

    curves = run(jnp.asarray(learning_rate), data, jax.random.clone(key_evaluate))
    return contender.name, learning_rate, tuning, jax.device_get(curves)


def _result(name, learning_rate, tuning, curves, reference, key) -> Result:
    losses, accuracy = curves.normalised, curves.validation_accuracy
    speedup = speedup_over(losses.train, reference.normalised.train)
    ratio = np.where(curves.failed, 0.0, speedup.ratio)
    num_steps = losses.train.shape[-1]
    return Result(
        name=name,
        learning_rate=float(learning_rate),
        tuning=tuning,
        num_configurations=1 if tuning is None else len(tuning.grid),
        curves=curves,
        mean_loss=_mean(losses.train),
        final_loss=_mean(losses.final),
        validation_loss=_mean(losses.validation[:, -1]),
        validation_accuracy=None if accuracy is None else _mean(accuracy[:, -1]),
        failure_rate=_mean(curves.failed),
        steps_to_reference=np.where(curves.failed, num_steps + 1, speedup.steps),
        censored=speedup.censored | curves.failed,
        speedup=ratio,
        speedup_iqm=iqm_interval(ratio[None], jax.random.clone(key)),
    )


def _mean(values) -> float:
    return float(np.asarray(values, np.float64).mean())
