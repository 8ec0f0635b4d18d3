"""Task families: distributions over training problems, and augmentations of them."""

from metaopt.data._sinusoids import SinusoidTask
from metaopt.tasks._augment import (
    GradientNoiseTask,
    ReducedBatchTask,
    RescaledTask,
    ScaledInitTask,
    bfloat16,
    gradient_noise,
    reduced_batch,
    rescale,
    scaled_init,
)
from metaopt.tasks._augment_gradients import (
    ESGradientTask,
    es_gradient,
    normalised_gradient,
    random_directions,
)
from metaopt.tasks._augmented import Augmented, augmented
from metaopt.tasks._autoencoder import autoencoder
from metaopt.tasks._black_box import BlackBoxTask, black_box
from metaopt.tasks._classification import Metrics, classification
from metaopt.tasks._convnet import convnet
from metaopt.tasks._distribution import SampledFamily, sample_family
from metaopt.tasks._few_shot import FewShotTask, Query, Support, episodes, few_shot
from metaopt.tasks._least_squares import LeastSquaresTask, least_squares
from metaopt.tasks._logistic import logistic
from metaopt.tasks._mlp import mlp
from metaopt.tasks._mup_mlp import MuPMetrics, mup_mlp
from metaopt.tasks._normalise import clip_classification, relative_log, velo_classification
from metaopt.tasks._quadratic import QuadraticTask, quadratic
from metaopt.tasks._regression import regression
from metaopt.tasks._rnn_lm import rnn_lm
from metaopt.tasks._rosenbrock import RosenbrockTask, rosenbrock
from metaopt.tasks._sinusoid_regression import sinusoid_regression
from metaopt.tasks._transformer_lm import transformer_lm
from metaopt.tasks._vae import ELBO, vae
from metaopt.tasks._vision_transformer import vision_transformer

__all__ = [
    "Augmented",
    "BlackBoxTask",
    "ELBO",
    "ESGradientTask",
    "FewShotTask",
    "GradientNoiseTask",
    "LeastSquaresTask",
    "Metrics",
    "MuPMetrics",
    "QuadraticTask",
    "Query",
    "ReducedBatchTask",
    "RescaledTask",
    "RosenbrockTask",
    "SampledFamily",
    "ScaledInitTask",
    "SinusoidTask",
    "Support",
    "augmented",
    "autoencoder",
    "bfloat16",
    "black_box",
    "classification",
    "clip_classification",
    "convnet",
    "episodes",
    "es_gradient",
    "few_shot",
    "gradient_noise",
    "least_squares",
    "logistic",
    "mlp",
    "mup_mlp",
    "normalised_gradient",
    "quadratic",
    "random_directions",
    "reduced_batch",
    "regression",
    "relative_log",
    "rescale",
    "rnn_lm",
    "rosenbrock",
    "sample_family",
    "scaled_init",
    "sinusoid_regression",
    "transformer_lm",
    "vae",
    "velo_classification",
    "vision_transformer",
]
