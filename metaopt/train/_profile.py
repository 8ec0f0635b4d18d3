"""A profile of a few outer steps, for TensorBoard's or XProf's trace viewer."""

import os

import jax

_NUM_STEPS = 3


class Profiler:
    """Traces three outer steps after the first one of this process; a context manager.

    Args:
        directory: where the trace goes; None: nothing is traced.
        start: the step from which the run goes on.
    """

    def __init__(self, directory: str | os.PathLike | None, start: int):
        self._directory = directory
        self._first, self._last = start + 1, start + _NUM_STEPS
        self._active = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop()

    def before(self, step: int, state) -> None:
        """To be called before the step that takes `state` from `step` to `step + 1`."""
        if self._directory is not None and step == self._first:
            jax.block_until_ready(state)  # What was dispatched before is no part of the profile.
            jax.profiler.start_trace(os.fspath(self._directory))
            self._active = True

    def after(self, step: int, state) -> None:
        """To be called after that step."""
        if self._active and step == self._last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self):
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
