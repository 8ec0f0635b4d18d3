"""Named compositions of a task family, an inner loop and an estimator."""

from metaopt.algorithms._evolution import (
    EvolutionCounts,
    EvolutionResult,
    behaviour,
    evolve,
    mutate,
)
from metaopt.algorithms._learner import Episode, FewShotScores, MetaLearner, few_shot_scores
from metaopt.algorithms._maml import adapt, maml
from metaopt.algorithms._search import SearchState, search

__all__ = [
    "Episode",
    "EvolutionCounts",
    "EvolutionResult",
    "FewShotScores",
    "MetaLearner",
    "SearchState",
    "adapt",
    "behaviour",
    "evolve",
    "few_shot_scores",
    "maml",
    "mutate",
    "search",
]
