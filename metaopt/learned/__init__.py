"""Learned optimizers: `theta -> optax.GradientTransformationExtraArgs`."""

from metaopt.learned._adafac_mlp import AdafacMLPMoments, AdafacMLPState, adafac_mlp
from metaopt.learned._celo2 import Celo2Moments, celo2, scale_by_celo2
from metaopt.learned._decay import cosine_decayed
from metaopt.learned._features import Factored
from metaopt.learned._hyperparameters import Learnable, fraction, hyperparameters, positive, real
from metaopt.learned._mlp import MLPState, mlp
from metaopt.learned._schedules import log_linear, warmup_cosine

__all__ = [
    "AdafacMLPMoments",
    "AdafacMLPState",
    "Celo2Moments",
    "Factored",
    "Learnable",
    "MLPState",
    "adafac_mlp",
    "celo2",
    "cosine_decayed",
    "fraction",
    "hyperparameters",
    "log_linear",
    "mlp",
    "positive",
    "real",
    "scale_by_celo2",
    "warmup_cosine",
]
