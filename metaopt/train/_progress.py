"""Where a run stands, for people who watch it: `progress.json`, replaced as a whole.

Times are here and not in `metrics.jsonl`, whose lines are the same bits however often a run was
stopped and resumed.

phase               compiling, running, finished, stopped (by a signal) or failed
step, num_steps     outer steps taken, and in all
steps_per_second    outer steps per second of this process, probes and saves included; null at first
compile_seconds     what compiling the meta-step took; null before
updated             when this was written, in seconds since 1970
process, host       who wrote it
error               of a failed run, its message; otherwise null
"""

import json
import os
import pathlib
import time
from typing import Any, Literal, NamedTuple

import jax

from metaopt.train._distributed import name_of_this_host
from metaopt.train._run_folder import write_json

Phase = Literal["compiling", "running", "finished", "stopped", "failed"]
FILE = "progress.json"


class Progress(NamedTuple):
    """The content of `progress.json`."""

    phase: Phase
    step: int
    num_steps: int
    steps_per_second: float | None = None
    compile_seconds: float | None = None
    error: str | None = None


def write_progress(folder: pathlib.Path, progress: Progress) -> None:
    """Replaces a run's `progress.json`."""
    facts = {"updated": time.time(), "process": os.getpid(), "host": name_of_this_host()}
    write_json(folder / FILE, {**progress._asdict(), **facts})


def read_progress(folder: pathlib.Path) -> dict[str, Any] | None:
    """The content of `progress.json`; None if there is none.

    Raises:
        ValueError: if it is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{FILE} is damaged ({error})") from None
    if not isinstance(content, dict) or "phase" not in content:
        raise ValueError(f"{FILE} holds no progress")
    return content


def device_peak_bytes() -> int:
    """The most memory that any device of this process has used; -1 where the backend is silent."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(entry.get("peak_bytes_in_use", -1) for entry in stats)
