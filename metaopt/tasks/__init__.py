"""Task families: distributions over training problems, and augmentations of them."""

from metaopt.data._sinusoids import SinusoidTask
from metaopt.tasks._affine_system import (
    AffineSystem,
    EnvironmentPool,
    environment_pool,
    oscillator,
    point_charges,
)
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
from metaopt.tasks._bandit import BanditTask, bandit
from metaopt.tasks._black_box import BlackBoxTask, black_box
from metaopt.tasks._cart_pole import CartPoleTask, cart_pole
from metaopt.tasks._catch import catch
from metaopt.tasks._classification import Metrics, classification
from metaopt.tasks._convnet import convnet
from metaopt.tasks._convolution import convolve
from metaopt.tasks._coordinate_images import (
    CoordinateTask,
    FieldNetwork,
    Reconstruction,
    coordinate_images,
)
from metaopt.tasks._distribution import SampledFamily, sample_family
from metaopt.tasks._environment import Environment, Policy, Trajectory, rollout
from metaopt.tasks._environments import EnvironmentTask, environments
from metaopt.tasks._few_shot import (
    FewShotTask,
    Query,
    Support,
    SupportedBatch,
    episodes,
    few_shot,
)
from metaopt.tasks._few_shot_continual import few_shot_continual
from metaopt.tasks._few_shot_convnet import (
    BatchStatistics,
    few_shot_convnet,
    running_statistics,
)
from metaopt.tasks._few_shot_embedding import (
    Embedded,
    LinearHead,
    few_shot_embedding,
    mlp_embedding,
    unit_features,
)
from metaopt.tasks._few_shot_mlp import few_shot_mlp
from metaopt.tasks._gridworld import GridworldTask, gridworld
from metaopt.tasks._least_squares import LeastSquaresTask, least_squares
from metaopt.tasks._logistic import logistic
from metaopt.tasks._missing_modalities import missing_modalities
from metaopt.tasks._mlp import mlp
from metaopt.tasks._mup_mlp import MuPMetrics, mup_mlp
from metaopt.tasks._navigation import NavigationTask, navigation
from metaopt.tasks._normalise import clip_classification, relative_log, velo_classification
from metaopt.tasks._policy import (
    ValueFunction,
    categorical_policy,
    gaussian_policy,
    policy_of_logits,
    uniform_policy,
    value_function,
)
from metaopt.tasks._quadratic import QuadraticTask, quadratic
from metaopt.tasks._random_walk import random_walk
from metaopt.tasks._regression import regression
from metaopt.tasks._rnn_lm import rnn_lm
from metaopt.tasks._rosenbrock import RosenbrockTask, rosenbrock
from metaopt.tasks._shape_segmentation import Overlap, ShapeTask, shape_segmentation
from metaopt.tasks._sinusoid_regression import sinusoid_regression
from metaopt.tasks._sinusoid_stream import SinusoidStreamTask, sinusoid_stream
from metaopt.tasks._transformer_lm import transformer_lm
from metaopt.tasks._vae import ELBO, vae
from metaopt.tasks._vision_transformer import vision_transformer

__all__ = [
    "AffineSystem",
    "Augmented",
    "BanditTask",
    "BatchStatistics",
    "BlackBoxTask",
    "CartPoleTask",
    "CoordinateTask",
    "ELBO",
    "ESGradientTask",
    "Embedded",
    "Environment",
    "EnvironmentPool",
    "EnvironmentTask",
    "FewShotTask",
    "FieldNetwork",
    "GradientNoiseTask",
    "GridworldTask",
    "LeastSquaresTask",
    "LinearHead",
    "Metrics",
    "MuPMetrics",
    "NavigationTask",
    "Overlap",
    "Policy",
    "QuadraticTask",
    "Query",
    "Reconstruction",
    "ReducedBatchTask",
    "RescaledTask",
    "RosenbrockTask",
    "SampledFamily",
    "ScaledInitTask",
    "ShapeTask",
    "SinusoidStreamTask",
    "SinusoidTask",
    "Support",
    "SupportedBatch",
    "Trajectory",
    "ValueFunction",
    "augmented",
    "autoencoder",
    "bandit",
    "bfloat16",
    "black_box",
    "cart_pole",
    "catch",
    "categorical_policy",
    "classification",
    "clip_classification",
    "convnet",
    "convolve",
    "coordinate_images",
    "environment_pool",
    "environments",
    "episodes",
    "es_gradient",
    "few_shot",
    "few_shot_continual",
    "few_shot_convnet",
    "few_shot_embedding",
    "few_shot_mlp",
    "gaussian_policy",
    "gradient_noise",
    "gridworld",
    "least_squares",
    "logistic",
    "missing_modalities",
    "mlp",
    "mlp_embedding",
    "mup_mlp",
    "navigation",
    "normalised_gradient",
    "oscillator",
    "point_charges",
    "policy_of_logits",
    "quadratic",
    "random_directions",
    "random_walk",
    "reduced_batch",
    "regression",
    "relative_log",
    "rescale",
    "rnn_lm",
    "rollout",
    "rosenbrock",
    "running_statistics",
    "sample_family",
    "scaled_init",
    "shape_segmentation",
    "sinusoid_regression",
    "sinusoid_stream",
    "transformer_lm",
    "uniform_policy",
    "unit_features",
    "vae",
    "value_function",
    "velo_classification",
    "vision_transformer",
]
