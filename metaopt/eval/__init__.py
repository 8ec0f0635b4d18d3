"""Fair evaluation: learning curves, tuned baselines, scores, reports; estimators diagnosed."""

from metaopt.eval._bias import Bias, bias, relative_noise
from metaopt.eval._compare import Comparison, Protocol, Result, compare
from metaopt.eval._curves import Curves, NormalisedLosses, learning_curve
from metaopt.eval._diagnose import (
    Diagnosis,
    EstimatorDiagnosis,
    EstimatorFactory,
    HorizonDiagnosis,
    Slice,
    diagnose,
    standard_estimators,
)
from metaopt.eval._lyapunov import lyapunov
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
from metaopt.eval._recommend import recommend
from metaopt.eval._report import figure, table, to_json
from metaopt.eval._sampling import Samples, sample_estimator
from metaopt.eval._slices import loss_slice, roughness, smoothed
from metaopt.eval._tune import Baseline, Metric, TuneResult, baselines, cosine, log_grid, tune

__all__ = [
    "Baseline",
    "Bias",
    "Comparison",
    "Curves",
    "Diagnosis",
    "EstimatorDiagnosis",
    "EstimatorFactory",
    "HorizonDiagnosis",
    "Interval",
    "Metric",
    "NormalisedLosses",
    "Protocol",
    "Result",
    "Samples",
    "Slice",
    "Speedup",
    "TuneResult",
    "baselines",
    "bias",
    "compare",
    "cosine",
    "diagnose",
    "envelope",
    "figure",
    "iqm",
    "iqm_interval",
    "learning_curve",
    "log_grid",
    "loss_slice",
    "lyapunov",
    "probe",
    "recommend",
    "relative_noise",
    "roughness",
    "sample_estimator",
    "smooth",
    "smoothed",
    "speedup_over",
    "speedup_over_envelope",
    "standard_estimators",
    "steps_to",
    "table",
    "to_json",
    "tune",
]
