"""Meta-gradient estimators, one per file, behind one contract."""

from metaopt.estimators._backprop import backprop
from metaopt.estimators._best_response import BestResponseState, Response, best_response
from metaopt.estimators._es import es
from metaopt.estimators._nres import NRESState, nres
from metaopt.estimators._pes import Boundary, PESState, pes
from metaopt.estimators._truncated_backprop import TruncatedBackpropState, truncated_backprop
from metaopt.estimators._truncated_es import TruncatedESState, truncated_es

__all__ = [
    "BestResponseState",
    "Boundary",
    "NRESState",
    "PESState",
    "Response",
    "TruncatedBackpropState",
    "TruncatedESState",
    "backprop",
    "best_response",
    "es",
    "nres",
    "pes",
    "truncated_backprop",
    "truncated_es",
]
