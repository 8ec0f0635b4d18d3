"""Curves of runs, drawn over one another: the meta-loss and the probes against the outer step."""

import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metaopt.eval import smooth
from metaopt.eval._drawing import COLOURS, save_figure
from metaopt.train._metrics import read_metrics

_STYLES = ("-", "--", ":", "-.")


class RunCurves(NamedTuple):
    """What a run measured, each as `(steps, values)` without the steps that are not finite.

    Attributes:
        loss: meta-loss of each outer step.
        smoothed: its debiased exponential moving average.
        probes: scores, by the probe's name.
    """

    loss: tuple[np.ndarray, np.ndarray]
    smoothed: tuple[np.ndarray, np.ndarray]
    probes: dict[str, tuple[np.ndarray, np.ndarray]]


def run_curves(directory: str | os.PathLike, *, decay: float = 0.95) -> RunCurves:
    """Reads the curves of a run, whether it still runs or not.

    Args:
        directory: the run's folder.
        decay: of the moving average, per outer step.

    Raises:
        ValueError: if the folder has no metrics.
    """
    lines = read_metrics(directory)
    if not lines:
        raise ValueError(f"{directory} has no metrics to plot; is it a run's folder?")
    names = [name for line in lines for name in line if name.startswith("probe/")]
    steps, values = _column(lines, "loss")
    smoothed = np.asarray(smooth(values[None], decay=decay))[0] if len(values) else values
    probes = {name.removeprefix("probe/"): _column(lines, name) for name in dict.fromkeys(names)}
    return RunCurves((steps, values), (steps, smoothed), probes)


def plot_runs(
    directories: Sequence[str | os.PathLike], path: str | os.PathLike
) -> tuple[pathlib.Path, pathlib.Path]:
    """Draws runs over one another.

    Args:
        directories: the runs' folders; colours tell them apart, line styles the probes.
        path: where to write; the suffix is replaced. Directories are created.

    Returns:
        The paths of a PNG and an SVG.

    Raises:
        ValueError: if there is no run, or one without metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not directories:
        raise ValueError("plot_runs: no run to plot; name at least one folder.")
    runs = dict(zip(_labels(directories), map(run_curves, directories), strict=True))
    canvas = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2)
    for index, (label, run) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        left.plot(*run.loss, color=colour, alpha=0.2, linewidth=0.6)
        left.plot(*run.smoothed, color=colour, label=label)
        styles = itertools.cycle(_STYLES)
        for name, points in run.probes.items():
            text = name if len(runs) == 1 else f"{label}, {name}"
            right.plot(*points, next(styles), color=colour, marker=".", label=text)
    left.set(xlabel="outer step", ylabel="meta-loss (smoothed)")
    right.set(xlabel="outer step", ylabel="probe, held-out tasks")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", frameon=False)
    return save_figure(canvas, pathlib.Path(path))


def _column(lines, name) -> tuple[np.ndarray, np.ndarray]:
    kept = [line for line in lines if line.get(name) is not None]
    steps, values = ([line[key] for line in kept] for key in ("step", name))
    return np.array(steps, np.float64), np.array(values, np.float64)


def _labels(directories) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    parts = [pathlib.Path(d).resolve().parts for d in directories]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(
        f"plot_runs: a folder is named twice among {', '.join(map(str, directories))}."
    )
