"""Running a System: scans, horizons, windows with resets, whole-trajectory losses."""

from metaopt.unroll._episodes import (
    AutoResetState,
    Episode,
    Episodes,
    Window,
    auto_reset,
    episodes,
)
from metaopt.unroll._horizon import Horizon, as_horizon, log_uniform, sample_length
from metaopt.unroll._meta_loss import (
    MetaLossInfo,
    Objective,
    meta_loss,
    meta_loss_with_info,
)
from metaopt.unroll._unroll import FrozenState, Remat, freeze_diverged, unroll

__all__ = [
    "AutoResetState",
    "Episode",
    "Episodes",
    "FrozenState",
    "Horizon",
    "MetaLossInfo",
    "Objective",
    "Remat",
    "Window",
    "as_horizon",
    "auto_reset",
    "episodes",
    "freeze_diverged",
    "log_uniform",
    "meta_loss",
    "meta_loss_with_info",
    "sample_length",
    "unroll",
]
