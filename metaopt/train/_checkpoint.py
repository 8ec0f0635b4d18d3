"""Checkpoints of a run: Orbax behind the few operations that the driver needs.

What this adds to `orbax.checkpoint.CheckpointManager`: buffers are copied before an asynchronous
save, because the next meta-step is free to overwrite them; a checkpoint that cannot be read is set
aside and the one before is used; a save that failed says what is still there; and the pending save
is always waited for. Where a run has several processes, all of them make the same calls.
"""

import os
import pathlib
import re
import shutil
import warnings
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from metaopt.train._distributed import any_process, is_first, on_first
from metaopt.train._run_folder import RunError


class Checkpoints:
    """The checkpoints of one run; `close` it.

    Args:
        directory: where the steps are kept; created if missing.
        keep_last: how many of the latest steps are kept, besides the one with the best score.
    """

    def __init__(self, directory: pathlib.Path, *, keep_last: int = 2):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

        self._ocp = ocp
        self._directory = pathlib.Path(directory).resolve()
        best = keep.BestN(get_metric_fn=lambda metrics: metrics["score"], reverse=True, n=1)
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(keep_last), best]),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=self._options)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self._pending: int | None = None

    def close(self) -> None:
        """Waits for the pending save; without this it would be lost.

        Raises:
            RunError: if that save failed.
            jax.errors.JaxRuntimeError: if another process did not answer.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax hands on whatever its writers raise.
            self._fail(error)
        finally:
            try:
                self._manager.close()
            except Exception as error:
                # The same failure, told a second time.
                del error

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, *, score: float) -> None:
        """Saves in the background; returns once the state has been copied.

        Raises:
            RunError: if this save cannot begin, or the one before it failed, as on a full disk.
            jax.errors.JaxRuntimeError: if another process did not answer.
        """
        if step == self._manager.latest_step():
            return
        copy = self._copy(state)
        try:
            self._manager.wait_until_finished()
            self._pending = step
            self._manager.save(
                step, args=self._ocp.args.StandardSave(copy), metrics={"score": score}
            )
        except Exception as error:
            self._fail(error)

    def check(self) -> None:
        """Tells of a background save that has failed, without waiting for one that goes on.

        Raises:
            RunError: if that save failed, once.
        """
        if self._pending is None or self._manager.is_saving_in_progress():
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._fail(error)
        self._pending = None

    def restore(self, like: Any) -> Any | None:
        """The newest state that can be read, or None.

        Args:
            like: a state of the same structure, shapes, dtypes and placement on devices; the
                devices may differ from those of the run that saved it.

        Returns:
            The state. A step that cannot be read is moved to a folder beside the checkpoints, with
            a warning, and the step before is tried.
        """
        target = jax.tree.map(_abstract, like)
        while (step := self.latest_step()) is not None:
            state, error = None, None
            try:
                state = self._manager.restore(step, args=self._ocp.args.StandardRestore(target))
            except Exception as raised:  # Orbax raises many types for a damaged folder.
                error = raised
            if not any_process(error is not None):
                return state
            self._set_aside(step, error)
        return None

    def _set_aside(self, step: int, error: Exception | None) -> None:
        aside = self._directory.with_name(self._directory.name + "-unreadable")

        def move():
            aside.mkdir(exist_ok=True)
            place = aside / f"{step}-{sum(1 for _ in aside.iterdir())}"
            shutil.move(self._directory / str(step), place)

        on_first(move)
        self._manager.reload()
        if is_first():
            warnings.warn(
                f"checkpoint {step} of {self._directory} cannot be read "
                f"({type(error).__name__}); it was moved to {aside}, and the one before it is "
                "used.",
                stacklevel=3,
            )

    def _fail(self, error: Exception) -> NoReturn:
        if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
            raise error  # No word from another process: the driver tells.
        kept = [int(p.name) for p in self._directory.iterdir() if p.name.isdigit()]
        intact = f"the checkpoint of step {max(kept)} is intact" if kept else "none was saved yet"
        raise RunError(
            f"saving step {self._pending} in {self._directory} failed ({why(error)}); {intact}. "
            "Once there is room and permission to write, run the same command again to go on."
        ) from error


def why(error: Exception) -> str:
    """The reason of a failed write in a few words: libraries wrap it in long ones."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
