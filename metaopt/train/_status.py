"""Where a run stands, from its files alone: it may be running, stopped or damaged."""

import os
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

from metaopt.train._metrics import read_metrics
from metaopt.train._progress import read_progress
from metaopt.train._run_folder import is_held, read_settings_file

_RECENT = 100


class BestProbe(NamedTuple):
    """The lowest score of a probe, the outer step after which it was taken, and the last score."""

    score: float | None
    step: int | None
    last: float | None


class RunStatus(NamedTuple):
    """What is known of a run; None where its files do not tell.

    Attributes:
        phase: "compiling", "running", "finished", "stopped" (saved), "failed" (see `error`),
            "killed" (without a word), or "unknown".
        step: outer steps whose metrics are on disk.
        num_steps: outer steps in all.
        steps_per_second: speed of the process that runs it, or of the last one.
        seconds_left: at that speed.
        probes: by name; the first one decides on the best theta.
        nonfinite: mean fraction of tasks that counted as zero, over the last 100 steps.
        skipped: outer updates that were skipped, in all.
        last_checkpoint: step of the newest checkpoint that looks complete.
        updated: seconds since anything was written.
        error: the message of a failed run.
        problems: what is damaged or missing, in words.
    """

    phase: str
    step: int
    num_steps: int | None
    steps_per_second: float | None
    seconds_left: float | None
    probes: dict[str, BestProbe]
    nonfinite: float | None
    skipped: int
    last_checkpoint: int | None
    updated: float | None
    error: str | None
    problems: list[str]


def run_status(directory: str | os.PathLike) -> RunStatus:
    """Reads a run's folder; changes nothing and starts no backend.

    Args:
        directory: the run's folder.

    Returns:
        The status. Damage is told in `problems`, never raised.

    Raises:
        ValueError: if there is no run at all.
    """
    folder = pathlib.Path(directory)
    files = ("settings.json", "metrics.jsonl", "progress.json", "checkpoints")
    if not any((folder / name).exists() for name in files):
        raise ValueError(f"{folder} holds no run (no settings.json); start one with metaopt train.")
    problems: list[str] = []
    settings = _try(lambda: read_settings_file(folder), problems) or {}
    progress = _try(lambda: read_progress(folder), problems) or {}
    lines = _try(lambda: read_metrics(folder), problems) or []
    if _is_torn(folder / "metrics.jsonl", len(lines)):
        problems.append(f"metrics.jsonl cannot be read beyond line {len(lines)}")
    steps = [line for line in lines if "loss" in line]
    step = max([int(line["step"] or 0) for line in lines], default=0)
    num_steps = progress.get("num_steps", settings.get("outer", {}).get("steps"))
    speed = progress.get("steps_per_second")
    phase = _phase(folder, progress, step, num_steps)
    nonfinite = [
        line["nonfinite"] for line in steps[-_RECENT:] if line.get("nonfinite") is not None
    ]
    checkpoint = _newest_checkpoint(folder, problems)
    return RunStatus(
        phase=phase,
        step=step,
        num_steps=num_steps,
        steps_per_second=speed,
        seconds_left=(num_steps - step) / speed if speed and num_steps else None,
        probes=_probes(lines),
        nonfinite=float(np.mean(nonfinite)) if nonfinite else None,
        skipped=sum(line.get("skipped") == 1 for line in steps),
        last_checkpoint=checkpoint,
        updated=_age(folder),
        error=progress.get("error"),
        problems=problems,
    )


def _phase(folder, progress, step, num_steps) -> str:
    written = progress.get("phase", "unknown")
    if is_held(folder):
        return written if written in ("compiling", "running") else "running"
    if written in ("compiling", "running"):
        return "killed"
    if written == "unknown" and num_steps is not None and step >= num_steps:
        return "finished"
    return written


def _probes(lines) -> dict[str, BestProbe]:
    found: dict[str, BestProbe] = {}
    for line in lines:
        for name, score in line.items():
            if not name.startswith("probe/"):
                continue
            name = name.removeprefix("probe/")
            best = found.get(name, BestProbe(None, None, None))
            if score is not None and (best.score is None or score < best.score):
                best = BestProbe(score, int(line["step"]), score)
            found[name] = best._replace(last=score)
    return found


def _newest_checkpoint(folder, problems) -> int | None:
    complete = []
    for path in (folder / "checkpoints").glob("[0-9]*"):
        if not path.name.isdigit():
            continue
        if (path / "_CHECKPOINT_METADATA").exists() and (path / "default").is_dir():
            complete.append(int(path.name))
        else:
            problems.append(f"checkpoint {path.name} is incomplete")
    aside = folder / "checkpoints-unreadable"
    if aside.is_dir() and (count := sum(1 for _ in aside.iterdir())):
        problems.append(f"{count} unreadable checkpoints were set aside in {aside.name}")
    return max(complete, default=None)


def _age(folder) -> float | None:
    times = [
        path.stat().st_mtime
        for name in ("progress.json", "metrics.jsonl", "settings.json")
        if (path := folder / name).exists()
    ]
    return max(0.0, time.time() - max(times)) if times else None


def _is_torn(file, num_lines) -> bool:
    # A live run may be in the middle of its last line.
    return file.exists() and len(file.read_bytes().splitlines()) > num_lines + 1


def _try(read, problems) -> Any:
    try:
        return read()
    except (ValueError, OSError) as error:  # Damaged JSON and text that is none are ValueErrors.
        problems.append(str(error))
        return None
