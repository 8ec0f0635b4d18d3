"""Task families: distributions over training problems, and augmentations of them."""

from metaopt.data._sinusoids import SinusoidTask
from metaopt.tasks._augment import (
    GradientNoiseTask,
    ReducedBatchTask,
    RescaledTask,
    bfloat16,
    gradient_noise,
    reduced_batch,
    rescale,
)
from metaopt.tasks._autoencoder import autoencoder
from metaopt.tasks._classification import Metrics, classification
from metaopt.tasks._convnet import convnet
from metaopt.tasks._logistic import logistic
from metaopt.tasks._mlp import mlp
from metaopt.tasks._normalise import clip_classification, relative_log, velo_classification
from metaopt.tasks._quadratic import QuadraticTask, quadratic
from metaopt.tasks._sinusoid_regression import sinusoid_regression

__all__ = [
    "GradientNoiseTask",
    "Metrics",
    "QuadraticTask",
    "ReducedBatchTask",
    "RescaledTask",
    "SinusoidTask",
    "autoencoder",
    "bfloat16",
    "classification",
    "clip_classification",
    "convnet",
    "gradient_noise",
    "logistic",
    "mlp",
    "quadratic",
    "reduced_batch",
    "relative_log",
    "rescale",
    "sinusoid_regression",
    "velo_classification",
]
