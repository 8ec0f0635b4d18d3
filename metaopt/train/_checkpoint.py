"""Checkpoints of a run: Orbax behind the four operations that the driver needs.

What this adds to `orbax.checkpoint.CheckpointManager`: buffers are copied before an asynchronous
save, because the next meta-step is free to overwrite them; a checkpoint that cannot be read is set
aside and the one before is used; and the pending save is always waited for.
"""

import pathlib
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp


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

    def close(self) -> None:
        """Waits for the pending save; without this it would be lost."""
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, *, score: float) -> None:
        """Saves in the background; returns once the state has been copied."""
        if step == self._manager.latest_step():
            return
        copy = jax.tree.map(jnp.copy, state)
        self._manager.save(step, args=self._ocp.args.StandardSave(copy), metrics={"score": score})

    def restore(self, like: Any) -> Any | None:
        """The newest state that can be read, or None.

        Args:
            like: a state of the same structure, shapes, dtypes and placement on devices.

        Returns:
            The state. A step that cannot be read is moved to a folder beside the checkpoints, with
            a warning, and the step before is tried.
        """
        target = jax.tree.map(_abstract, like)
        while (step := self.latest_step()) is not None:
            try:
                return self._manager.restore(step, args=self._ocp.args.StandardRestore(target))
            except Exception as error:  # Orbax raises many types for a damaged folder.
                self._set_aside(step, error)
        return None

    def _set_aside(self, step: int, error: Exception) -> None:
        aside = self._directory.with_name(self._directory.name + "-unreadable")
        aside.mkdir(exist_ok=True)
        place = aside / f"{step}-{sum(1 for _ in aside.iterdir())}"
        shutil.move(self._directory / str(step), place)
        self._manager.reload()
        warnings.warn(
            f"checkpoint {step} of {self._directory} cannot be read ({type(error).__name__}); it "
            f"was moved to {place}, and the one before it is used.",
            stacklevel=3,
        )


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
