"""Learned optimizers: `theta -> optax.GradientTransformationExtraArgs`."""

from metaopt.learned._adafac_mlp import AdafacMLPMoments, AdafacMLPState, adafac_mlp
from metaopt.learned._adafac_nominal import Nominal, adafac_nominal
from metaopt.learned._adam_mlp import AdamMLPState, adam_mlp
from metaopt.learned._celo import celo, celo_trainable
from metaopt.learned._celo2 import celo2, scale_by_celo2
from metaopt.learned._celo2_mixed import RawAdamMoments, RawAdamState, celo2_mixed
from metaopt.learned._celo_scheduled import CeloScheduledState, celo_scheduled
from metaopt.learned._decay import cosine_decayed
from metaopt.learned._entry_network import EntryMoments
from metaopt.learned._features import Factored
from metaopt.learned._hyperparameters import Learnable, fraction, hyperparameters, positive, real
from metaopt.learned._les import LESSpread, LESState, les
from metaopt.learned._lga import LGAState, lga
from metaopt.learned._long_runs import LongRunsState, long_runs
from metaopt.learned._loss_features import LossHistory
from metaopt.learned._lstm import CoordinateLSTMState, Preprocess, lstm
from metaopt.learned._mlp import MLPState, mlp
from metaopt.learned._mup import mlp_roles, mup, mup_scale, scale_by_mup
from metaopt.learned._nn_adam import NNAdamMoments, NNAdamState, nn_adam
from metaopt.learned._pretrained import pretrained, pretrained_card, pretrained_names
from metaopt.learned._programs import Program, program, simplify
from metaopt.learned._recurrent import LSTMState
from metaopt.learned._rnn_mlp import LossAverage, RNNMLPMoments, RNNMLPState, rnn_mlp
from metaopt.learned._scheduled import ScheduledState
from metaopt.learned._schedules import log_linear, warmup_cosine
from metaopt.learned._strategy import (
    IsotropicESState,
    LearnedStrategy,
    RandomSearchState,
    Strategy,
    isotropic_es,
    random_search,
)
from metaopt.learned._symbolic import SymbolicState, symbolic
from metaopt.learned._train_only import train_only
from metaopt.learned._velo import velo
from metaopt.learned._weights import load, save, weights_info

__all__ = [
    "AdafacMLPMoments",
    "AdafacMLPState",
    "AdamMLPState",
    "CeloScheduledState",
    "CoordinateLSTMState",
    "EntryMoments",
    "Factored",
    "IsotropicESState",
    "LESSpread",
    "LESState",
    "LGAState",
    "LSTMState",
    "Learnable",
    "LearnedStrategy",
    "LongRunsState",
    "LossAverage",
    "LossHistory",
    "MLPState",
    "NNAdamMoments",
    "NNAdamState",
    "Nominal",
    "Preprocess",
    "Program",
    "RNNMLPMoments",
    "RNNMLPState",
    "RandomSearchState",
    "RawAdamMoments",
    "RawAdamState",
    "ScheduledState",
    "Strategy",
    "SymbolicState",
    "adafac_mlp",
    "adafac_nominal",
    "adam_mlp",
    "celo",
    "celo2",
    "celo2_mixed",
    "celo_scheduled",
    "celo_trainable",
    "cosine_decayed",
    "fraction",
    "hyperparameters",
    "isotropic_es",
    "les",
    "lga",
    "load",
    "log_linear",
    "long_runs",
    "lstm",
    "mlp",
    "mlp_roles",
    "mup",
    "mup_scale",
    "nn_adam",
    "positive",
    "pretrained",
    "pretrained_card",
    "pretrained_names",
    "program",
    "random_search",
    "real",
    "rnn_mlp",
    "save",
    "scale_by_celo2",
    "scale_by_mup",
    "simplify",
    "symbolic",
    "train_only",
    "velo",
    "warmup_cosine",
    "weights_info",
]
