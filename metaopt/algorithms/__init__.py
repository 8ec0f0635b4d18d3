"""Named compositions of a task family, an inner loop and an estimator."""

from metaopt.algorithms._evolution import (
    EvolutionCounts,
    EvolutionResult,
    behaviour,
    evolve,
    mutate,
)
from metaopt.algorithms._maml import adapt, maml
from metaopt.algorithms._search import SearchState, search

__all__ = [
    "EvolutionCounts",
    "EvolutionResult",
    "SearchState",
    "adapt",
    "behaviour",
    "evolve",
    "maml",
    "mutate",
    "search",
]
