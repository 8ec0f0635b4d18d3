"""The suite for people: a table with one row for each contender, and a figure of all its cells."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt.eval._drawing import COLOURS, save_figure

if TYPE_CHECKING:
    from rich.table import Table

_INTERVALS = (
    ("speedup", "speed-up over tuned {reference}"),
    ("envelope", "speed-up over Adam's envelope"),
)


def suite_table(summary: Mapping[str, Any]) -> "Table":
    """A rich table with one row for each contender, the highest speed-up first.

    Args:
        summary: from `run_suite`, possibly by way of JSON.

    Returns:
        A `rich.table.Table`, for `rich.print`; its caption explains the columns.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    settings, reference = summary["settings"], summary["reference"]
    caption = (
        f"{len(summary['tasks'])} tasks, {settings['num_values']} evaluation seeds; interquartile "
        f"means over both with 95 % intervals. speed-up: over tuned {reference} on the same seeds "
        "(>: share of runs that did not reach its final loss); envelope: over the best of Adam at "
        f"any constant rate; train, test: final loss over that of {reference}; fail: runs that "
        f"failed; cost: an update's time over Adam's; edge: tasks whose knob, one of "
        f"{settings['num_values']}, is at the end of its grid."
    )
    view = Table(caption=caption, box=SIMPLE_HEAD, padding=0)
    view.add_column("optimizer", overflow="fold")
    for header in ("speed-up", ">", "envelope", "train", "test", "fail", "cost", "edge"):
        view.add_column(header, justify="right", no_wrap=True)
    for name in _ranked(summary):
        entry = summary["contenders"][name]
        test = entry["test_ratio"]
        view.add_row(
            escape(name),
            _interval(entry["speedup"]),
            f"{entry['censored']:.0%}",
            f"{entry['envelope']['estimate']:.2f}",
            f"{entry['train_ratio']['estimate']:.2f}",
            "" if test is None else f"{test['estimate']:.3f}",
            f"{entry['failure_rate']:.0%}",
            f"{entry['overhead']:.1f}",
            str(entry["at_edge"]),
        )
    return view


def suite_figure(
    summary: Mapping[str, Any], path: str | Path, *, title: str | None = None
) -> tuple[Path, Path]:
    """Draws every speed-up on every task, and the interquartile means with their intervals.

    Args:
        summary: from `run_suite`, possibly by way of JSON.
        path: where to write; the suffix is replaced. Directories are created.
        title: above the axes; none by default.

    Returns:
        The paths of the PNG and of the SVG.
    """
    from matplotlib.figure import Figure

    names, tasks = _ranked(summary), list(summary["tasks"])
    width, height = 3.5 + 0.62 * len(names) + 5.2, 1.9 + 0.25 * max(len(tasks), len(names))
    canvas = Figure(figsize=(width, height), layout="constrained")
    left, *right = canvas.subplots(
        1, 3, width_ratios=[0.62 * len(names) + 1.5, 2.4, 2.4], squeeze=True
    )
    _draw_cells(left, summary, names, tasks)
    for axes, (score, label), colour in zip(right, _INTERVALS, COLOURS, strict=False):
        _draw_bars(axes, summary, names, score, label.format(**summary), colour)
    right[1].set_yticklabels([])
    if title is not None:
        canvas.suptitle(title, x=0.01, ha="left")
    return save_figure(canvas, path)


def _draw_cells(axes, summary, names, tasks):
    """Mean speed-ups as numbers, coloured by their logarithm."""
    values = np.array(
        [[np.mean(summary["contenders"][n]["tasks"][t]["speedup"]) for n in names] for t in tasks]
    )
    # Two octaves either way; a task on which all runs failed has the darkest colour.
    shade = np.clip(np.log2(np.maximum(values, 2.0**-3)), -2, 2)
    axes.imshow(shade, cmap="PuOr_r", vmin=-2, vmax=2, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "white" if abs(shade[row, column]) > 1.4 else "black"
            text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_title(f"speed-up over tuned {summary['reference']}, mean over seeds", fontsize=9)


def _draw_bars(axes, summary, names, score, label, colour):
    entries = [summary["contenders"][name][score] for name in names]
    centre = np.array([entry["estimate"] for entry in entries], np.float64)
    ends = np.array([[entry["low"], entry["high"]] for entry in entries], np.float64).T
    axes.barh(
        range(len(names)), centre, xerr=np.abs(ends - centre), color=colour, alpha=0.75, capsize=2
    )
    axes.axvline(1.0, color="0.3", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlabel("interquartile mean, 95 % interval", fontsize=8)
    axes.set_title(label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _ranked(summary) -> list[str]:
    contenders = summary["contenders"]
    return sorted(contenders, key=lambda name: -contenders[name]["speedup"]["estimate"])


def _interval(entry) -> str:
    return f"{entry['estimate']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"
