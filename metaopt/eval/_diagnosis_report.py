"""A diagnosis for people (a table, a figure) and for programs (JSON)."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from metaopt.core import Oracles
from metaopt.eval._bias import Bias
from metaopt.eval._diagnose import Diagnosis, EstimatorDiagnosis, HorizonDiagnosis, Slice
from metaopt.eval._drawing import COLOURS, plain
from metaopt.eval._recommend import is_exact, recommend
from metaopt.eval._slices import smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

# A slice whose largest loss exceeds the smallest by this factor has a logarithmic axis.
_WIDE = 100

_CAPTION = (
    "T: inner steps of a trajectory; a row's sample is what one trajectory gives. cos, bias: "
    "against the reference gradient (* more than three standard errors, < upper bound). var: "
    "variance of a sample over the squared norm of the reference. var·s: times seconds, the "
    "variance at equal compute. MiB: temporary memory. grads, HVPs: inner gradients and "
    "Hessian-vector products of a sample."
)


def diagnosis_table(diagnosis: Diagnosis) -> "Table":
    """A rich table with a row for each horizon and estimator."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    levels = [_level_text(level) for level in diagnosis.horizons]
    caption = "\n".join([*levels, _CAPTION])
    view = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=0)
    view.add_column("T", justify="right", no_wrap=True)
    view.add_column(" estimator", overflow="fold")
    headers = ("cos", "bias", "var", "time", "var·s", "MiB", "grads", "HVPs")
    for header in headers:
        view.add_column(f" {header}", justify="right", no_wrap=True)
    last = None
    for row in diagnosis.estimators:
        if last is not None and row.horizon != last:
            view.add_section()
        view.add_row(
            "" if row.horizon == last else str(row.horizon),
            f" {escape(row.name)}",
            *(f" {cell}" for cell in _cells(row)),
        )
        last = row.horizon
    return view


def _cells(row: EstimatorDiagnosis) -> list[str]:
    exact = is_exact(row)
    return [
        f"{row.bias.cosine:.2f}",
        _bias_text(row),
        "0" if exact else f"{row.bias.variance:.2g}",
        _duration(row.seconds),
        "0" if exact else f"{row.cost:.2g}",
        "?" if row.temp_bytes < 0 else f"{row.temp_bytes / 2**20:.2f}",
        _count(row.oracles.inner_gradients),
        _count(row.oracles.hessian_products),
    ]


def _bias_text(row: EstimatorDiagnosis) -> str:
    if not math.isfinite(row.bias.squared):
        return "?"
    if row.bias.significant:
        return f"{_percent(row.bias.magnitude)}*"
    return "0%" if row.bias.bound < 1e-3 else f"<{_percent(row.bias.bound)}"


def _percent(value: float) -> str:
    if value < 0.01:
        return f"{value:.1%}"
    return f"{value:.0%}" if value < 10 else f"{value:.0e}x"


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def _count(value) -> str:
    value = int(value)
    return str(value) if value < 10_000 else f"{value / 1000:.0f}k"


def _level_text(level: HorizonDiagnosis) -> str:
    kind = {
        "backprop": "exact, by backpropagation",
        "es": "of the smoothed loss, by ES",
        "given": "as given",
    }[level.reference]
    noise = "" if level.reference == "given" else f", known to {_percent(level.reference_noise)}"
    return (
        f"T={level.horizon}: reference {kind}{noise}, norm {level.norm:.3g}; Lyapunov exponent "
        f"{level.exponent:.3g} per step, growth e^{level.log_growth[-1]:.1f}."
    )


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything as JSON-ready values; NaN and inf become None."""
    rows = [
        {
            **row._asdict(),
            "bias": {
                **row.bias._asdict(),
                "magnitude": row.bias.magnitude,
                "significant": row.bias.significant,
            },
            "oracles": row.oracles._asdict(),
        }
        for row in diagnosis.estimators
    ]
    return plain(
        {
            "sigma": diagnosis.sigma,
            "num_samples": diagnosis.num_samples,
            "recommendation": recommend(diagnosis),
            "estimators": rows,
            "horizons": [level._asdict() for level in diagnosis.horizons],
            "slices": [piece._asdict() for piece in diagnosis.slices],
        }
    )


def diagnosis_from_json(record: Mapping[str, Any]) -> Diagnosis:
    """What `diagnosis_json` was made of; None becomes NaN."""

    def fields(entry, *without) -> dict[str, Any]:
        kept = {k: v for k, v in entry.items() if k not in without}
        return {k: _array(v) if isinstance(v, list) else _number(v) for k, v in kept.items()}

    def row(entry):
        compared = Bias(**fields(entry["bias"], "magnitude", "significant"))
        oracles = Oracles(**entry["oracles"])
        return EstimatorDiagnosis(
            **fields(entry, "bias", "oracles"), bias=compared, oracles=oracles
        )

    return Diagnosis(
        tuple(row(entry) for entry in record["estimators"]),
        tuple(HorizonDiagnosis(**fields(entry)) for entry in record["horizons"]),
        tuple(Slice(**fields(entry)) for entry in record["slices"]),
        record["sigma"],
        record["num_samples"],
    )


def _number(value):
    return math.nan if value is None else value


def _array(values):
    return np.array([_number(v) for v in values], np.float64)


def diagnosis_figure(diagnosis: Diagnosis, *, title: str | None = None) -> "Figure":
    """Bias, variance, cost and growth above; slices of the meta-loss below."""
    from matplotlib.figure import Figure

    has_slices = bool(diagnosis.slices)
    canvas = Figure(figsize=(13, 6.4 if has_slices else 3.4), layout="constrained")
    grid = canvas.subplots(2 if has_slices else 1, 4, squeeze=False)
    names = list(dict.fromkeys(row.name for row in diagnosis.estimators))
    for index, name in enumerate(names):
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": "-" if index < len(COLOURS) else "--",
            "linewidth": 1.4,
        }
        rows = [row for row in diagnosis.estimators if row.name == name]
        _draw_estimator(grid[0], rows, style)
    _finish_estimators(grid[0], diagnosis)
    _draw_growth(grid[0, 3], diagnosis.horizons)
    for axes, piece in zip(grid[-1] if has_slices else (), diagnosis.slices, strict=False):
        _draw_slice(axes, piece, diagnosis)
    for axes in grid.ravel():
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    canvas.legend(
        *grid[0, 1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(names), 8),
        frameon=False,
        fontsize=9,
    )
    if title is not None:
        canvas.suptitle(title, fontsize=11)
    return canvas


def _draw_estimator(panels, rows, style) -> None:
    """One estimator's bias, variance and cost against the horizon."""
    horizons = [row.horizon for row in rows]
    shown = [max(r.bias.magnitude if r.bias.significant else r.bias.bound, 1e-4) for r in rows]
    panels[0].plot(horizons, shown, **style)
    for row, y in zip(rows, shown, strict=True):
        face = style["color"] if row.bias.significant else "white"
        panels[0].plot(row.horizon, y, "o", color=style["color"], markerfacecolor=face)
    for axes, values in (
        (panels[1], [row.bias.variance for row in rows]),
        (panels[2], [row.cost for row in rows]),
    ):
        values = [math.nan if is_exact(r) else v for r, v in zip(rows, values, strict=True)]
        axes.plot(horizons, values, "o", **{**style, "markersize": 4}, label=rows[0].name)


def _finish_estimators(panels, diagnosis: Diagnosis) -> None:
    """Titles, scales and limits of the first three panels."""
    titles = (
        "relative bias\n(filled: significant, hollow: upper bound)",
        "relative variance of a sample",
        "variance × seconds",
    )
    horizons = [level.horizon for level in diagnosis.horizons]
    for axes, title in zip(panels[:3], titles, strict=True):
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("horizon T (inner steps)", fontsize=8)
        axes.set_xscale("log")
        axes.set_xticks(horizons, [str(h) for h in horizons])
        axes.minorticks_off()
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        if any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.set_yscale("log")


def _draw_growth(axes: "Axes", levels) -> None:
    """Growth of a small difference of states, one curve per horizon."""
    for level in levels:
        steps = np.arange(1, level.horizon + 1)
        axes.plot(steps, level.log_growth, color="0.35", linewidth=1.2)
        axes.plot(level.horizon, level.log_growth[-1], "o", color="0.35", markersize=4)
    rate = levels[-1].exponent
    axes.set_title(
        "log growth of a small difference\n"
        f"Lyapunov exponent λ = {rate:.2g}, λT = {rate * levels[-1].horizon:.2g}",
        fontsize=9,
        loc="left",
    )
    axes.set_xlabel("inner step", fontsize=8)
    axes.grid(axis="y", color="0.9", linewidth=0.6)


def _draw_slice(axes: "Axes", piece, diagnosis: Diagnosis) -> None:
    """A slice, with its smoothed version over it."""
    losses = np.where(np.isfinite(piece.losses), piece.losses, np.nan)
    axes.plot(piece.offsets, losses, color=COLOURS[0], linewidth=0.9)
    calm = smoothed(piece.losses, piece.offsets, diagnosis.sigma)
    axes.plot(piece.offsets, calm, color=COLOURS[1], linewidth=1.4, linestyle="--")
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    low, high = np.nanmin(losses, initial=np.inf), np.nanmax(losses, initial=-np.inf)
    if 0 < _WIDE * low < high:
        axes.set(yscale="log", ylim=(0.8 * low, 1.25 * high))
    horizon = max(level.horizon for level in diagnosis.horizons)
    axes.set_title(
        f"meta-loss, T={horizon}, {piece.direction} direction\nroughness {piece.roughness:.1f}",
        fontsize=9,
        loc="left",
    )
    axes.set_xlabel("distance from theta (dashed: smoothed at sigma)", fontsize=8)
