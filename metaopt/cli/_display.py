"""What a run shows on the terminal: a progress display, or plain lines where there is none."""

import time
from collections.abc import Mapping


class Display:
    """Reports a run's progress; a context manager.

    On a terminal, a bar with speed and time left; otherwise a line per probe, so that logs of
    batch jobs stay readable.
    """

    def __init__(self, num_steps: int, *, quiet: bool = False):
        from rich.console import Console

        self._console = Console(quiet=quiet)
        self._num_steps, self._progress = num_steps, None

    def __enter__(self):
        self._start = time.perf_counter()
        if self._console.is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._bar = self._progress.add_task("compiling", total=self._num_steps)
        else:
            self._console.print("compiling ...")
        return self

    def __exit__(self, *exception):
        if self._progress is not None:
            self._progress.stop()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the newest metrics; the signature that `meta_train(on_report=...)` wants."""
        text = _summary(metrics)
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, description=text)
        else:
            seconds = time.perf_counter() - self._start
            self._console.print(f"step {step}/{self._num_steps}  {text}  {seconds:.0f} s")


def _summary(metrics: Mapping[str, float]) -> str:
    parts = [f"meta-loss {metrics['loss']:.3f}"] if "loss" in metrics else []
    parts += [f"{name} {value:.3f}" for name, value in metrics.items() if name.startswith("probe/")]
    if metrics.get("skipped"):
        parts.append("update skipped: not finite")
    return "  ".join(parts)
