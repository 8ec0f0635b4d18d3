"""What a run writes, in an order that a kill at any moment leaves usable.

Metrics of a step are on disk before the checkpoint of that step: a resumed run drops the lines
beyond its checkpoint and writes them again, the same bits.
"""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from metaopt.train._checkpoint import Checkpoints, why
from metaopt.train._distributed import is_first, on_first
from metaopt.train._metrics import Metrics
from metaopt.train._progress import Phase, Progress, write_progress
from metaopt.train._run_folder import RunError, hold, open_folder, save_theta
from metaopt.train._state import TrainState

_HEARTBEAT = 10.0  # Seconds after which progress is written without a probe.


class _Files(NamedTuple):
    """Where a run with a folder writes; processes but the first have checkpoints alone."""

    folder: pathlib.Path
    lock: int | None
    metrics: Metrics | None


class Recorder:
    """Everything a run writes; without a directory it only hands metrics on. Enter it to close it.

    Attributes:
        state: the state to go on from: of the last checkpoint, or the one given.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None,
        settings: Mapping[str, Any],
        state: TrainState,
        *,
        num_steps: int,
        keep_last: int,
        tensorboard: bool,
    ):
        self.state = state
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._newest: dict[str, float] = {}
        self._files: _Files | None = None
        self._progress = Progress("compiling", 0, num_steps)
        if directory is None:
            return
        folder = pathlib.Path(directory).resolve()
        lock = on_first(lambda: hold(open_folder(folder, settings)))
        try:
            self._checkpoints = Checkpoints(folder / "checkpoints", keep_last=keep_last)
            restored = self._checkpoints.restore(state)
            self.state = state if restored is None else restored
            step = int(self.state.step)
            metrics = on_first(lambda: Metrics(folder, step, tensorboard=tensorboard))
            self._files = _Files(folder, lock, metrics)
            self._report("compiling", step)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self._files is None:
            return
        alone = error is not None and jax.process_count() > 1
        try:
            # Another process may be gone, and then a wait for its part of a save has no end.
            if not alone:
                self._checkpoints.close()
        except RunError as failed:
            if error is None:
                error = failed
                raise
        finally:
            self._end(error)

    def begin(self, compile_seconds: float) -> None:
        """Notes that compilation is over and steps follow."""
        self._began = self._reported = time.perf_counter()
        self._start = self._progress.step
        self._progress = self._progress._replace(compile_seconds=compile_seconds)
        self._report("running", self._start)

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Notes a step's metrics without waiting for the device.

        Raises:
            RunError: if something cannot be written, or a save has failed since the last step.
        """
        self._pending.append((step, metrics))
        if self._files is None:
            return
        if jax.process_count() == 1:  # Several processes have to learn of it in the same call.
            self._checkpoints.check()
        if time.perf_counter() - self._reported > _HEARTBEAT:
            self._flush()
            self._report("running", step)

    def probe(self, step: int, scores: Mapping[str, jax.Array]) -> dict[str, float]:
        """Writes all that is pending and a probe's scores; returns the newest metrics."""
        named = {f"probe/{name}": float(value) for name, value in scores.items()}
        self._flush((step, named) if named else None)
        self._report("running" if step else "compiling", step)
        return {**self._newest, **named}

    def save(self, step: int, state: TrainState) -> None:
        """Writes what is pending, then the state.

        Raises:
            RunError: if something cannot be written.
        """
        self._flush()
        if self._files is None:
            return
        self._checkpoints.save(step, state, score=float(state.best_score))
        if is_first():
            file = self._files.folder / "theta.npz"
            self._write(lambda: save_theta(file, state.best_theta))
        self._report("running", step)

    def rescue(self, step: int, state: TrainState) -> str:
        """Saves before a run ends with an error, and tells what is saved."""
        if self._files is None:
            return "Nothing is saved, for the run has no folder."
        if jax.process_count() == 1:
            self.save(step, state)
            saved = f"The state of step {step} is saved"
        else:  # The others are not here to write their part.
            saved = f"The checkpoint of step {self._checkpoints.latest_step()} is saved"
        return f"{saved}; once the cause is mended, run the same command again to go on."

    def _flush(self, last=None):
        lines = jax.device_get(self._pending)
        self._pending = []
        lines = [(n, {name: float(x) for name, x in m.items()}) for n, m in lines]
        if lines:
            self._newest = lines[-1][1]
        if self._files is None or (metrics := self._files.metrics) is None:
            return

        def write():
            for line in [*lines, *([] if last is None else [last])]:
                metrics.write(*line)
            metrics.flush()

        self._write(write)

    def _report(self, phase: Phase, step: int, error: str | None = None):
        self._progress = self._progress._replace(phase=phase, step=step, error=error)
        if phase == "running":
            self._reported = time.perf_counter()
            if step > self._start:
                speed = (step - self._start) / (self._reported - self._began)
                self._progress = self._progress._replace(steps_per_second=speed)
        files = self._files
        if files is not None and files.metrics is not None:
            self._write(lambda: write_progress(files.folder, self._progress))

    def _write(self, write):
        try:
            write()
        except OSError as error:
            assert self._files is not None
            latest = self._checkpoints.latest_step()
            kept = "none was saved yet" if latest is None else f"that of step {latest} is intact"
            raise RunError(
                f"{self._files.folder} cannot be written ({why(error)}); of the checkpoints, "
                f"{kept}. Once there is room and permission to write, run the same command again "
                "to go on."
            ) from error

    def _end(self, error):
        """Closes files; what fails now has failed before, and been told."""
        assert self._files is not None
        done = self._progress.step >= self._progress.num_steps
        phase: Phase = "finished" if done else "stopped"
        message = None
        if error is not None:
            phase, message = "failed", f"{type(error).__name__}: {error}"
        try:
            self._report(phase, self._progress.step, message)
            if self._files.metrics is not None:
                self._files.metrics.close()
        except (OSError, RunError):
            if error is None:
                raise
        finally:
            if self._files.lock is not None:
                os.close(self._files.lock)
