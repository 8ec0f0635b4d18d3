"""Running a System: scans and what their derivatives cost, horizons, windows, whole losses."""

from metaopt.unroll._delayed_gradients import DelayedState, delayed_gradients
from metaopt.unroll._differentiable import differentiable
from metaopt.unroll._episodes import (
    AutoResetState,
    Episode,
    Episodes,
    Window,
    auto_reset,
    episodes,
)
from metaopt.unroll._horizon import Horizon, as_horizon, log_uniform, sample_length
from metaopt.unroll._inner_gradient import (
    Gradient,
    first_order_value_and_grad,
    mixed_value_and_grad,
    takes_value_and_grad,
    with_gradient,
)
from metaopt.unroll._late_losses import LateLossesState, late_losses
from metaopt.unroll._memory import MemoryReport, memory_report, memory_table
from metaopt.unroll._meta_loss import (
    MetaLossInfo,
    Objective,
    meta_loss,
    meta_loss_with_info,
)
from metaopt.unroll._plan import Loop, Remat
from metaopt.unroll._unroll import FrozenState, freeze_diverged, unroll

__all__ = [
    "AutoResetState",
    "DelayedState",
    "Episode",
    "Episodes",
    "FrozenState",
    "Gradient",
    "Horizon",
    "LateLossesState",
    "Loop",
    "MemoryReport",
    "MetaLossInfo",
    "Objective",
    "Remat",
    "Window",
    "as_horizon",
    "auto_reset",
    "delayed_gradients",
    "differentiable",
    "episodes",
    "first_order_value_and_grad",
    "freeze_diverged",
    "late_losses",
    "log_uniform",
    "memory_report",
    "memory_table",
    "meta_loss",
    "meta_loss_with_info",
    "mixed_value_and_grad",
    "sample_length",
    "takes_value_and_grad",
    "unroll",
    "with_gradient",
]
