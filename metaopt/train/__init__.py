"""The driver: one compiled meta-step in a loop that can be killed at any moment."""

from metaopt.train._checkpoint import Checkpoints
from metaopt.train._distributed import Membership, initialize_distributed
from metaopt.train._loop import Compiled, Probe, TrainResult, compile_step, meta_train
from metaopt.train._mesh import task_sharding
from metaopt.train._metrics import Metrics, read_metrics
from metaopt.train._plot import RunCurves, plot_runs, run_curves
from metaopt.train._record import Record
from metaopt.train._run_folder import (
    RunError,
    RunFolderError,
    load_theta,
    open_folder,
    save_theta,
    write_json,
)
from metaopt.train._signals import StopRequest
from metaopt.train._state import TrainState, init_state, keep_best, meta_step
from metaopt.train._status import BestProbe, RunStatus, run_status

__all__ = [
    "BestProbe",
    "Checkpoints",
    "Compiled",
    "Membership",
    "Metrics",
    "Probe",
    "Record",
    "RunCurves",
    "RunError",
    "RunFolderError",
    "RunStatus",
    "StopRequest",
    "TrainResult",
    "TrainState",
    "compile_step",
    "init_state",
    "initialize_distributed",
    "keep_best",
    "load_theta",
    "meta_step",
    "meta_train",
    "open_folder",
    "plot_runs",
    "read_metrics",
    "run_curves",
    "run_status",
    "save_theta",
    "task_sharding",
    "write_json",
]
