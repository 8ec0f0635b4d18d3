"""Fair evaluation: learning curves, tuned baselines, scores with intervals, reports."""

from metaopt.eval._compare import Comparison, Protocol, Result, compare
from metaopt.eval._curves import Curves, NormalisedLosses, learning_curve
from metaopt.eval._metrics import (
    Interval,
    Speedup,
    envelope,
    iqm,
    iqm_interval,
    smooth,
    speedup_over,
    speedup_over_envelope,
    steps_to,
)
from metaopt.eval._probe import probe
from metaopt.eval._report import figure, table, to_json
from metaopt.eval._tune import Baseline, Metric, TuneResult, baselines, cosine, log_grid, tune

__all__ = [
    "Baseline",
    "Comparison",
    "Curves",
    "Interval",
    "Metric",
    "NormalisedLosses",
    "Protocol",
    "Result",
    "Speedup",
    "TuneResult",
    "baselines",
    "compare",
    "cosine",
    "envelope",
    "figure",
    "iqm",
    "iqm_interval",
    "learning_curve",
    "log_grid",
    "probe",
    "smooth",
    "speedup_over",
    "speedup_over_envelope",
    "steps_to",
    "table",
    "to_json",
    "tune",
]
