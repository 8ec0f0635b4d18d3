"""Meta-gradient estimators, one per file, behind one contract."""

from metaopt.estimators._activity import activity_value_and_grad
from metaopt.estimators._amigo import AmIGOState, amigo
from metaopt.estimators._backprop import backprop
from metaopt.estimators._bamm import bamm
from metaopt.estimators._best_response import BestResponseState, Response, best_response
from metaopt.estimators._bome import Barrier, bome
from metaopt.estimators._bootstrapped import (
    BootstrappedInfo,
    BootstrappedState,
    bootstrapped,
    squared_distance,
)
from metaopt.estimators._bsa import bsa
from metaopt.estimators._columns import Directions
from metaopt.estimators._combined import CombinedInfo, CombinedWeights, combined
from metaopt.estimators._darts import DARTSState, darts
from metaopt.estimators._es import es
from metaopt.estimators._f2sa import F2SAState, f2sa
from metaopt.estimators._feedback_alignment import dfa_value_and_grad, random_feedback
from metaopt.estimators._forward import ForwardState, forward
from metaopt.estimators._fsla import FSLAState, fsla
from metaopt.estimators._gpes import GPESState, gpes
from metaopt.estimators._guesses import (
    Normalisation,
    forward_gradient,
    local_guess,
    local_value_and_grad,
    random_guess,
)
from metaopt.estimators._hypergradient import DoubleLoopState
from metaopt.estimators._implicit import Draws, ImplicitInfo, ImplicitState, InnerSolver, implicit
from metaopt.estimators._layerwise import (
    add_label_nodes,
    goodness_loss,
    label_node_logits,
    label_node_loss,
    layerwise_outputs,
    layerwise_value_and_grad,
)
from metaopt.estimators._mrbo import MomentumState, mrbo
from metaopt.estimators._nres import NRESState, nres
from metaopt.estimators._one_step import one_step
from metaopt.estimators._pbgd import Gap, PBGDState, pbgd
from metaopt.estimators._pes import Boundary, PESState, pes
from metaopt.estimators._population_es import Pooling, Shaping, population_es
from metaopt.estimators._pzobo import pzobo
from metaopt.estimators._saba import GradientTable, SABAState, saba
from metaopt.estimators._sama import Mixed, SAMAState, sama
from metaopt.estimators._soba import SOBAState, soba
from metaopt.estimators._sparse_mixer import SparseGate, sparsemixer_gate
from metaopt.estimators._srba import SRBAState, srba
from metaopt.estimators._stocbio import stocbio
from metaopt.estimators._stochastic_neurons import (
    Baseline,
    BaselineState,
    bernoulli_log_prob,
    noisy_rectifier,
    optimal_baseline,
    score_function,
    stochastic_times_smooth,
    straight_through,
)
from metaopt.estimators._sustain import sustain
from metaopt.estimators._truncated_backprop import TruncatedBackpropState, truncated_backprop
from metaopt.estimators._truncated_es import TruncatedESState, truncated_es
from metaopt.estimators._ttsa import ttsa
from metaopt.estimators._vrbo import VRBOState, vrbo

__all__ = [
    "AmIGOState",
    "Barrier",
    "Baseline",
    "BaselineState",
    "BestResponseState",
    "BootstrappedInfo",
    "BootstrappedState",
    "Boundary",
    "CombinedInfo",
    "CombinedWeights",
    "DARTSState",
    "Directions",
    "DoubleLoopState",
    "Draws",
    "F2SAState",
    "FSLAState",
    "ForwardState",
    "GPESState",
    "Gap",
    "GradientTable",
    "ImplicitInfo",
    "ImplicitState",
    "InnerSolver",
    "Mixed",
    "MomentumState",
    "NRESState",
    "Normalisation",
    "PBGDState",
    "PESState",
    "Pooling",
    "Response",
    "SABAState",
    "SAMAState",
    "SOBAState",
    "SRBAState",
    "Shaping",
    "SparseGate",
    "TruncatedBackpropState",
    "TruncatedESState",
    "VRBOState",
    "activity_value_and_grad",
    "add_label_nodes",
    "amigo",
    "backprop",
    "bamm",
    "bernoulli_log_prob",
    "best_response",
    "bome",
    "bootstrapped",
    "bsa",
    "combined",
    "darts",
    "dfa_value_and_grad",
    "es",
    "f2sa",
    "forward",
    "forward_gradient",
    "fsla",
    "goodness_loss",
    "gpes",
    "implicit",
    "label_node_logits",
    "label_node_loss",
    "layerwise_outputs",
    "layerwise_value_and_grad",
    "local_guess",
    "local_value_and_grad",
    "mrbo",
    "noisy_rectifier",
    "nres",
    "one_step",
    "optimal_baseline",
    "pbgd",
    "pes",
    "population_es",
    "pzobo",
    "random_feedback",
    "random_guess",
    "saba",
    "sama",
    "score_function",
    "soba",
    "sparsemixer_gate",
    "squared_distance",
    "srba",
    "stocbio",
    "stochastic_times_smooth",
    "straight_through",
    "sustain",
    "truncated_backprop",
    "truncated_es",
    "ttsa",
    "vrbo",
]
