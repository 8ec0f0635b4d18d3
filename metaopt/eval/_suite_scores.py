"""Scores of a suite: each contender against the reference on the same seeds, aggregated.

    speed-up    steps the reference needs to its own final smoothed loss / steps the contender does
    envelope    steps Adam's envelope needs to the contender's final smoothed loss / its steps
    train       final training loss / the reference's,      test    the same of the test loss

A run that failed scores 0, 0, c and c, and ratios of losses are cut to [1/c, c], c = 100. Over
tasks and seeds: the interquartile mean with a 95 % stratified bootstrap interval
(arXiv:2108.13264).
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from metaopt.eval._metrics import (
    iqm,
    iqm_interval,
    smooth,
    speedup_over,
    speedup_over_envelope,
)

_CAP = 100.0
_TINY = 1e-30
_SCORES = ("speedup", "envelope", "train_ratio", "test_ratio")

Cells = Mapping[tuple[str, str], Mapping[str, Any]]


def summarise(
    cells: Cells, envelopes: Mapping[str, Mapping[str, Any]], key: PRNGKeyArray, *, reference: str
) -> dict[str, Any]:
    """Scores of all contenders.

    Args:
        cells: by task and contender; all contenders on the same tasks.
        envelopes: by task.
        key: randomness of the bootstrap; all contenders share its draws.
        reference: the contender that the others are compared with.

    Returns:
        `"tasks"`, `"contenders"` and, for each contender, its aggregates and `"tasks"` with the
        scores of each.
    """
    tasks = list(dict.fromkeys(task for task, _ in cells))
    names = list(dict.fromkeys(name for _, name in cells))
    return {
        "reference": reference,
        "tasks": {
            task: {k: cells[task, reference][k] for k in ("group", "num_steps")} for task in tasks
        },
        "contenders": {
            name: _aggregate(
                {
                    task: _scores(cells[task, name], cells[task, reference], envelopes[task])
                    for task in tasks
                },
                {task: cells[task, name]["group"] for task in tasks},
                jax.random.clone(key),
            )
            for name in names
        },
    }


def _scores(cell, reference, envelope) -> dict[str, Any]:
    """Of one contender on one task; lists have one entry for each seed."""
    failed = np.asarray(cell["failed"], bool)
    curves, others = (_array(x["train_curves"]) for x in (cell, reference))
    speedup = speedup_over(curves, others)
    levels, num_steps = _array(envelope["levels"]), cell["num_steps"]
    over_envelope = speedup_over_envelope(
        smooth(curves)[:, -1], np.where(np.isnan(levels), np.inf, levels), num_steps=num_steps
    )
    accuracy = cell["test_accuracy"]
    scores = {
        "value": cell["value"],
        "at_edge": cell["at_edge"],
        "speedup": np.where(failed, 0.0, speedup.ratio),
        "censored": int((speedup.censored | failed).sum()),
        "envelope": np.where(failed, 0.0, over_envelope),
        "train_ratio": _ratio(cell["final_loss"], reference["final_loss"], failed),
        "test_ratio": None,
        "final_loss": float(_array(cell["final_loss"]).mean()),
        "test_loss": None,
        "test_difference": None,
        "test_accuracy": None if accuracy is None else float(_array(accuracy).mean()),
        "failure_rate": float(failed.mean()),
        "overhead": cell["overhead"]["ratio"],
    }
    if cell["test_loss"] is None:
        return scores
    losses, others = (_array(x["test_loss"]) for x in (cell, reference))
    return {
        **scores,
        "test_ratio": _ratio(losses, others, failed),
        "test_loss": float(losses.mean()),
        "test_difference": float((losses - others).mean()),
    }


def _aggregate(tasks, groups, key) -> dict[str, Any]:
    def interval(score):
        rows = [t[score] for t in tasks.values() if t[score] is not None]
        return iqm_interval(np.stack(rows), jax.random.clone(key))._asdict() if rows else None

    by_group = {
        group: iqm(np.stack([tasks[t]["speedup"] for t in tasks if groups[t] == group]))
        for group in dict.fromkeys(groups.values())
    }
    num_seeds = len(next(iter(tasks.values()))["speedup"])
    return {
        **{score: interval(score) for score in _SCORES},
        "censored": sum(t["censored"] for t in tasks.values()) / (num_seeds * len(tasks)),
        "failure_rate": float(np.mean([t["failure_rate"] for t in tasks.values()])),
        "overhead": float(np.median([t["overhead"] for t in tasks.values()])),
        "at_edge": sum(t["at_edge"] for t in tasks.values()),
        "groups": by_group,
        "tasks": tasks,
    }


def _array(values) -> np.ndarray:
    """Numbers of a JSON file, where None was not finite."""
    return np.array(values, np.float64)


def _ratio(losses, others, failed) -> np.ndarray:
    losses, others = _array(losses), _array(others)
    # Both may be zero, on a problem that is solved exactly.
    ratio = np.clip((losses + _TINY) / (others + _TINY), 1 / _CAP, _CAP)
    return np.where(failed | ~np.isfinite(ratio), _CAP, ratio)
