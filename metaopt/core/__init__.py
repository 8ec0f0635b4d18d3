"""The contracts and the adapters between them."""

from metaopt.core._adapters import (
    BilevelState,
    OuterLoss,
    TrainingState,
    adaptation,
    bilevel_training,
    training,
)
from metaopt.core._checked import checked
from metaopt.core._contracts import (
    Batch,
    BilevelProblem,
    Data,
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
    Theta,
    keep_finite,
)
from metaopt.core._loss_functions import loss_functions
from metaopt.core._minibatch import minibatched

__all__ = [
    "Batch",
    "BilevelProblem",
    "BilevelState",
    "Data",
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
    "Theta",
    "TrainingState",
    "adaptation",
    "bilevel_training",
    "checked",
    "keep_finite",
    "loss_functions",
    "minibatched",
    "training",
]
