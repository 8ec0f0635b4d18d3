"""Comparisons and diagnoses for people (a table, a figure) and for programs (JSON)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt.eval._compare import Comparison, Result
from metaopt.eval._diagnose import Diagnosis
from metaopt.eval._diagnosis_report import (
    diagnosis_figure,
    diagnosis_from_json,
    diagnosis_json,
    diagnosis_table,
)
from metaopt.eval._drawing import COLOURS, plain, save_figure
from metaopt.eval._metrics import smooth

if TYPE_CHECKING:
    from rich.table import Table

_MAX_POINTS = 400


def table(results: Comparison | Diagnosis) -> "Table":
    """A rich table with one row for each contender, or for each horizon and estimator.

    Of a comparison, `*` marks a learning rate at the end of the grid, `=` a fixed one; `>T` steps,
    a majority of seeds that did not reach the reference's final loss; `<`, a speed-up that such
    seeds bound from above. Of a diagnosis, the caption explains the columns.

    Args:
        results: from `compare` or `diagnose`.

    Returns:
        A `rich.table.Table`, for `rich.print`.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    if isinstance(results, Diagnosis):
        return diagnosis_table(results)
    protocol = results.protocol
    has_accuracy = any(r.validation_accuracy is not None for r in results.results)
    caption = (
        f"{protocol.num_steps} inner steps, {protocol.num_seeds} evaluation seeds. lr: learning "
        f"rate, one of {len(protocol.grid)} by the {protocol.metric} loss on "
        f"{protocol.num_tuning_seeds} tuning seeds (* at the end of the grid, = fixed). Losses are "
        "normalised; outer, acc: on the outer pool; fail: runs that failed. steps: median, to the "
        f"final loss of {protocol.reference}; speed-up: interquartile mean, 95 % interval."
    )
    # Narrow enough for 80 columns; only the names may be folded.
    view = Table(caption=caption, box=SIMPLE_HEAD, padding=0)
    view.add_column("optimizer", overflow="fold")
    headers = ["lr", "mean", "final", "outer"]
    headers += ["acc"] if has_accuracy else []
    for header in [*headers, "fail", "steps", "speed-up"]:
        view.add_column(header, justify="right", no_wrap=True)
    for result in results.results:
        view.add_row(escape(result.name), *_cells(result, protocol.num_steps, has_accuracy))
    return view


def _cells(result: Result, num_steps: int, has_accuracy: bool) -> list[str]:
    mark = "=" if result.tuning is None else "*" if result.tuning.at_edge else ""
    accuracy = result.validation_accuracy
    steps = np.median(result.steps_to_reference)
    speedup = result.speedup_iqm
    is_bound = (result.censored & ~result.curves.failed).any()
    return [
        f"{result.learning_rate:.3g}{mark}",
        f"{result.mean_loss:.3g}",
        f"{result.final_loss:.3g}",
        f"{result.validation_loss:.3g}",
        *(["" if accuracy is None else f"{accuracy:.1%}"] if has_accuracy else []),
        f"{result.failure_rate:.0%}",
        f">{num_steps}" if steps > num_steps else f"{steps:.0f}",
        f"{'<' if is_bound else ''}{speedup.estimate:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]",
    ]


def to_json(results: Comparison | Diagnosis) -> dict[str, Any]:
    """Everything a report or a figure needs, as JSON-ready values; NaN and inf become None.

    Args:
        results: from `compare` or `diagnose`.

    Returns:
        A dictionary. Of a comparison: `"protocol"`, and `"contenders"`, the results with a smoothed
        training curve, thinned to at most 400 points: its mean over seeds and the middle 95 % of
        the seeds. Of a diagnosis: its fields, and the `"recommendation"`.
    """
    if isinstance(results, Diagnosis):
        return diagnosis_json(results)
    contenders = [_record(result) for result in results.results]
    return plain({"protocol": results.protocol._asdict(), "contenders": contenders})


def _record(result: Result) -> dict[str, Any]:
    record = {k: v for k, v in result._asdict().items() if k not in ("tuning", "curves")}
    tuning = result.tuning
    curves = result.curves
    return {
        **record,
        "speedup_iqm": result.speedup_iqm._asdict(),
        "at_edge": tuning is not None and tuning.at_edge,
        "tuning_scores": None if tuning is None else tuning.scores,
        "tuning_failure_rate": None if tuning is None else tuning.failure_rate,
        "failed": curves.failed,
        "mean_losses": np.asarray(curves.normalised.train, np.float64).mean(axis=-1),
        "final_losses": curves.final_loss,
        "validation_losses": curves.validation_loss[:, -1],
        "curve": _thinned(curves.train_loss),
    }


def _thinned(losses) -> dict[str, np.ndarray]:
    smoothed = smooth(losses)
    num_steps = smoothed.shape[-1]
    points = np.unique(np.linspace(0, num_steps - 1, min(num_steps, _MAX_POINTS)).astype(int))
    # One diverged seed ends the curve: a mean over the survivors would look like progress.
    smoothed = np.where(np.isfinite(smoothed).all(axis=0), smoothed, np.nan)[:, points]
    low, high = np.quantile(smoothed, [0.025, 0.975], axis=0)
    return {"step": points + 1, "mean": smoothed.mean(axis=0), "low": low, "high": high}


def figure(
    results: Comparison | Diagnosis | Mapping[str, Any],
    path: str | Path,
    *,
    title: str | None = None,
    loss_label: str = "training loss",
) -> tuple[Path, Path]:
    """Draws smoothed training curves, or the panels of a diagnosis.

    Curves: mean over seeds, band over the middle 95 % of the seeds. Panels: bias, variance and cost
    against the horizon, growth of small differences, slices of the meta-loss.

    Touches no global plotting state. The loss axis is logarithmic if all losses are positive. A
    curve ends where the first of its seeds diverged.

    Args:
        results: from `compare` or `diagnose`, or what `to_json` made of it.
        path: where to write; the suffix is replaced. Directories are created.
        title: above the axes; none by default.
        loss_label: what the loss of curves is, with its unit, such as `"cross-entropy (nats)"`.

    Returns:
        The paths of the PNG and of the SVG.
    """
    from matplotlib.figure import Figure

    if not isinstance(results, Comparison | Diagnosis) and "estimators" in results:
        results = diagnosis_from_json(results)
    if isinstance(results, Diagnosis):
        return save_figure(diagnosis_figure(results, title=title), path)

    record = to_json(results) if isinstance(results, Comparison) else results
    num_steps = record["protocol"]["num_steps"]
    canvas = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = canvas.add_subplot()
    for index, contender in enumerate(record["contenders"]):
        _draw(axes, contender, COLOURS[index % len(COLOURS)], dashed=index >= len(COLOURS))
    curves = [contender["curve"] for contender in record["contenders"]]
    lows = [low for curve in curves for low in curve["low"] if low is not None]
    starts = [curve["high"][0] for curve in curves if curve["high"][0] is not None]
    if lows and min(lows) > 0:
        # A diverging curve leaves the axes, it does not stretch them.
        axes.set(yscale="log", ylim=(0.8 * min(lows), 1.5 * max(starts)))
    axes.set(xlabel="inner step", ylabel=f"{loss_label}, smoothed", xlim=(0, num_steps))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    canvas.legend(loc="outside right upper", frameon=False)
    if title is not None:
        axes.set_title(title, loc="left")
    return save_figure(canvas, path)


def _draw(axes, contender, colour, *, dashed):
    curve = {k: np.array(v, np.float64) for k, v in contender["curve"].items()}
    label = f"{contender['name']} (lr {contender['learning_rate']:.2g})"
    style = "--" if dashed else "-"
    axes.plot(curve["step"], curve["mean"], style, color=colour, linewidth=1.6, label=label)
    band = {"color": colour, "alpha": 0.18, "linewidth": 0}
    axes.fill_between(curve["step"], curve["low"], curve["high"], **band)
