"""Fair evaluation: learning curves, tuned baselines, scores, reports; estimators diagnosed."""

from metaopt.eval._bias import Bias, bias, relative_noise
from metaopt.eval._compare import Comparison, Protocol, Result, compare
from metaopt.eval._coordinate_check import CoordinateCheck, coordinate_check
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
from metaopt.eval._drawing import save_figure
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
from metaopt.eval._suite import run_suite
from metaopt.eval._suite_baselines import (
    Contender,
    as_contender,
    pretrained_contender,
    suite_baselines,
    theta_digest,
)
from metaopt.eval._suite_cells import SuiteSettings
from metaopt.eval._suite_report import suite_figure, suite_table
from metaopt.eval._suite_tasks import SuiteProblem, SuiteTask, suite_tasks
from metaopt.eval._tune import Baseline, Metric, TuneResult, baselines, cosine, log_grid, tune
from metaopt.eval._tune_adaptation import AdaptationChoice, AdaptationTrial, tune_adaptation

__all__ = [
    "AdaptationChoice",
    "AdaptationTrial",
    "Baseline",
    "Bias",
    "Comparison",
    "Contender",
    "CoordinateCheck",
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
    "SuiteProblem",
    "SuiteSettings",
    "SuiteTask",
    "TuneResult",
    "as_contender",
    "baselines",
    "bias",
    "compare",
    "coordinate_check",
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
    "pretrained_contender",
    "probe",
    "recommend",
    "relative_noise",
    "roughness",
    "run_suite",
    "sample_estimator",
    "save_figure",
    "smooth",
    "smoothed",
    "speedup_over",
    "speedup_over_envelope",
    "standard_estimators",
    "steps_to",
    "suite_baselines",
    "suite_figure",
    "suite_table",
    "suite_tasks",
    "table",
    "theta_digest",
    "to_json",
    "tune",
    "tune_adaptation",
]
