"""The driver: one compiled meta-step in a loop that can be killed at any moment."""

from metaopt.train._checkpoint import Checkpoints
from metaopt.train._loop import Compiled, Probe, TrainResult, compile_step, meta_train
from metaopt.train._mesh import task_sharding
from metaopt.train._metrics import Metrics, read_metrics
from metaopt.train._run_folder import (
    RunFolderError,
    load_theta,
    open_folder,
    save_theta,
    write_json,
)
from metaopt.train._signals import StopRequest
from metaopt.train._state import TrainState, init_state, keep_best, meta_step

__all__ = [
    "Checkpoints",
    "Compiled",
    "Metrics",
    "Probe",
    "RunFolderError",
    "StopRequest",
    "TrainResult",
    "TrainState",
    "compile_step",
    "init_state",
    "keep_best",
    "load_theta",
    "meta_step",
    "meta_train",
    "open_folder",
    "read_metrics",
    "save_theta",
    "task_sharding",
    "write_json",
]
