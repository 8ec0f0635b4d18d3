"""Metrics of a run: JSON lines, and TensorBoard where its package is installed.

`metrics.jsonl` holds a JSON object per line, with the outer step under `step` and numbers under
the other names; null stands for NaN and inf. Steps never decrease. An outer step's line has

    loss            meta-loss, averaged over families
    loss/<family>   meta-loss of a family, averaged over the tasks in which it is finite
    nonfinite       fraction of tasks whose contribution was not finite and counted as zero
    frozen          fraction of tasks (antithetic arms count one by one) frozen after divergence
    spread          mean absolute difference between antithetic losses; 0 without antithetic arms
    inner_steps     inner steps taken, over all tasks and arms
    grad_norm       norm of the meta-gradient, before the outer optimizer
    update_norm     norm of the outer update; 0 if it was skipped
    skipped         1 if the outer update was skipped, else 0

and a probe's line, before the first step and after the step of the same number,

    probe/<name>    the probe's score, lower is better

Lines are the same bits however often a run was stopped and resumed; times are in `progress.json`.
"""

import json
import os
import pathlib
from collections.abc import Mapping


class Metrics:
    """Appends metrics to `metrics.jsonl`, one JSON object per line, keyed by step.

    Args:
        folder: the run's folder.
        step: the step from which the run goes on. Lines beyond it, written by a run that was
            killed after its last checkpoint, are dropped: they will be written again. At step 0
            nothing is kept, as the first probe comes again too.
        tensorboard: whether to write TensorBoard events to `folder/tensorboard` too.

    Raises:
        ImportError: if `tensorboard` is asked for and the extra is not installed.
    """

    def __init__(self, folder: pathlib.Path, step: int, *, tensorboard: bool = False):
        self._writer = _summary_writer(folder / "tensorboard", step) if tensorboard else None
        file = folder / "metrics.jsonl"
        _keep_lines_until(file, step)
        self._stream = open(file, "a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line; NaN and inf become null, which JSON can hold."""
        values = {name: _number(value) for name, value in metrics.items()}
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self._stream.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(folder: str | os.PathLike) -> list[dict[str, float | None]]:
    """The lines of a run's `metrics.jsonl`; a line cut short by a kill is left out."""
    file = pathlib.Path(folder) / "metrics.jsonl"
    return [line for line, _ in _lines(file)] if file.exists() else []


def _lines(file):
    """Pairs of content and bytes, up to the first line that is no object with a step."""
    lines = []
    for text in file.read_bytes().splitlines(keepends=True):
        try:
            content = json.loads(text)
        except ValueError:  # Bytes that are no text are a ValueError too.
            break
        # A cut can leave a number that looks whole.
        if not (isinstance(content, dict) and "step" in content and text.endswith(b"\n")):
            break
        lines.append((content, text))
    return lines


def _keep_lines_until(file: pathlib.Path, step: int) -> None:
    if not file.exists():
        return
    kept = [text for line, text in _lines(file) if 0 < step >= line["step"]]
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(b"".join(kept))
    partial.replace(file)


def _number(value):
    value = float(value)
    if value != value or value in (float("inf"), float("-inf")):
        return None
    return int(value) if value.is_integer() else value


def _summary_writer(folder, step):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs the extra: pip install 'metaopt[tensorboard]'."
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
