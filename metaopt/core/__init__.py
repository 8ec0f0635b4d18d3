"""The contracts and the adapters between them."""

from metaopt.core._adapters import (
    BilevelState,
    OuterLoss,
    TrainingState,
    adaptation,
    bilevel_training,
    training,
)
from metaopt.core._contracts import (
    BilevelProblem,
    Estimate,
    EstimateInfo,
    Estimator,
    LearnedOptimizer,
    MetaLoss,
    Oracles,
    Params,
    Scalar,
    Split,
    StepInfo,
    System,
    TaskFamily,
    TaskParams,
    keep_finite,
)
from metaopt.core._minibatch import minibatched

__all__ = [
    "BilevelProblem",
    "BilevelState",
    "Estimate",
    "EstimateInfo",
    "Estimator",
    "LearnedOptimizer",
    "MetaLoss",
    "Oracles",
    "OuterLoss",
    "Params",
    "Scalar",
    "Split",
    "StepInfo",
    "System",
    "TaskFamily",
    "TaskParams",
    "TrainingState",
    "adaptation",
    "bilevel_training",
    "keep_finite",
    "minibatched",
    "training",
]
