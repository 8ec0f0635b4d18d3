"""The evaluation suite: every contender on every held-out task, tuned with the same budget.

For each cell (task, contender), one program runs a batch of n pairs (value of the knob, key):

    tuning        n values, one key for all; again for each tuning key
    evaluation    the best value, n other keys

The best value has the lowest normalised training loss at the end, averaged over the tuning keys.
All contenders share all keys, so that differences are paired by initial parameters and batches. For
the speed-up over an envelope (VeLO, arXiv:2211.09760), Adam's grid runs longer at constant learning
rates, on one more key. Where noise is the floor of the loss, the step at which this running minimum
reaches a level is a matter of luck, and Adam itself may score far from 1.

A cell is one JSON file, written at once and never computed twice: a suite that was stopped goes
on, a new contender finds the baselines there, and processes may share a folder.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from metaopt.eval._drawing import plain
from metaopt.eval._suite_baselines import Contender, as_contender, suite_baselines
from metaopt.eval._suite_cells import ENVELOPE, SuiteSettings, TaskRunner
from metaopt.eval._suite_scores import summarise
from metaopt.eval._suite_tasks import SuiteTask, suite_tasks
from metaopt.eval._tune import Baseline


def run_suite(
    contenders: Iterable[Contender | Baseline],
    folder: str | Path,
    *,
    tasks: Iterable[SuiteTask] | None = None,
    settings: SuiteSettings | None = None,
    on_report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Computes the cells that a folder lacks and scores all of them.

    Host-side orchestration like `compare`: it compiles by itself, one program for each cell.

    Args:
        contenders: what to compare, by different names. The reference, the baseline `adamw`, joins
            them if none has its name.
        folder: where cells are read and written; made where it is missing.
        tasks: `suite_tasks()` by default.
        settings: `SuiteSettings()` by default.
        on_report: told one line about each cell that was computed.

    Returns:
        The scores, JSON-ready, for `suite_table` and `suite_figure`: `"settings"`, `"reference"`,
        `"tasks"`, and in `"contenders"` for each its aggregates and what it scored on each task.

    Raises:
        ValueError: if there is no task, or a name of a task or contender appears twice or holds a
            slash.
    """
    settings = SuiteSettings() if settings is None else settings
    tasks = suite_tasks() if tasks is None else tuple(tasks)
    entries = [as_contender(contender) for contender in contenders]
    reference = suite_baselines()[0]
    if reference.name not in [entry.name for entry in entries]:
        entries.insert(0, reference)
    named = {"tasks": [t.name for t in tasks], "contenders": [e.name for e in entries]}
    for kind, names in named.items():
        if not names or len(set(names)) < len(names):
            raise ValueError(f"run_suite: {kind}={names} must be some, with different names.")
    if any("/" in name for names in named.values() for name in names):
        raise ValueError(f"run_suite: names of files have no slash, got {named}; rename.")
    report = on_report or (lambda text: None)
    cells, envelopes = {}, {}
    for index, task in enumerate(tasks):
        runner = TaskRunner(task, settings, Path(folder))
        envelopes[task.name] = runner.cell(ENVELOPE, runner.envelope, report)
        for entry in entries:
            cells[task.name, entry.name] = runner.cell(entry, runner.contender, report)
        report(f"task {index + 1} of {len(tasks)}, {task.name}: done")
    key = jax.random.key(settings.seed)
    scores = summarise(cells, envelopes, key, reference=reference.name)
    return plain({"settings": dataclasses.asdict(settings), **scores})
