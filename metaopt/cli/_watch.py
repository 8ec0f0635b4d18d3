"""The commands that look at runs and change nothing: `status` and `plot`."""

import json
import pathlib
from collections.abc import Sequence

from metaopt import train
from metaopt.cli._phases import run_folders


def show_status(run: pathlib.Path, *, as_json: bool) -> None:
    """Prints where a run stands: a table for people, or JSON for programs.

    Of a curriculum, a table for each phase that has begun, or a JSON list.
    """
    folders = run_folders(run)
    statuses = [train.run_status(folder) for folder in folders]
    if as_json:
        contents = [_content(status) for status in statuses]
        print(json.dumps(contents[0] if folders == [run] else contents, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for folder, status in zip(folders, statuses, strict=True):
        view = Table(box=None, show_header=False, title=escape(str(folder)), title_justify="left")
        for name, text in _rows(status):
            view.add_row(name, escape(text))
        Console().print(view)


def _content(status: train.RunStatus):
    probes = {name: probe._asdict() for name, probe in status.probes.items()}
    return {**status._asdict(), "probes": probes}


def _rows(status: train.RunStatus):
    total = "?" if status.num_steps is None else status.num_steps
    share = f" ({status.step / status.num_steps:.0%})" if status.num_steps else ""
    yield "phase", status.phase
    yield "step", f"{status.step} of {total}{share}"
    if status.steps_per_second is not None:
        yield "speed", f"{status.steps_per_second:.3g} steps/s"
    if status.seconds_left and status.phase == "running":
        yield "time left", f"about {duration(status.seconds_left)}"
    for name, probe in status.probes.items():
        if probe.score is not None:
            last = "not finite" if probe.last is None else f"{probe.last:.4g}"
            yield f"probe {name}", f"best {probe.score:.4g} at step {probe.step}, last {last}"
        else:
            yield f"probe {name}", "never finite"
    if status.nonfinite is not None:
        yield "non-finite tasks", f"{status.nonfinite:.1%} of the last 100 steps"
    yield "skipped updates", str(status.skipped)
    newest = "none" if status.last_checkpoint is None else f"step {status.last_checkpoint}"
    yield "last checkpoint", newest
    if status.updated is not None:
        yield "last sign of life", f"{duration(status.updated)} ago"
    if status.error:
        yield "error", status.error
    for problem in status.problems:
        yield "problem", problem


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.1f} days"


def draw_runs(runs: Sequence[pathlib.Path], out: pathlib.Path | None) -> None:
    """Draws runs over one another and says where."""
    if not runs:
        raise ValueError("name at least one run's folder.")
    runs = [folder for run in runs for folder in run_folders(run)]
    png, svg = train.plot_runs(runs, runs[0] / "curves" if out is None else out)
    print(f"figure: {png}\n        {svg}")
