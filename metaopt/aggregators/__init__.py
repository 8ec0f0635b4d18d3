"""From several gradients to one update.

Several objectives have a *Jacobian tree*: the parameters' tree with a leading axis, one row per
objective, from `value_and_jacobian` or from gradients mapped over tasks. An `Aggregator` turns it
into one gradient, and `aggregate` makes it the first stage of an optax chain. Whatever carries more
than a key from step to step has an `init` and an `update` of its own.
"""

from metaopt.aggregators._aggregator import (
    AggregateState,
    Aggregator,
    aggregate,
    by_gramian,
    combine,
    gramian,
    value_and_jacobian,
)
from metaopt.aggregators._aligned_mtl import aligned_mtl
from metaopt.aggregators._cagrad import cagrad
from metaopt.aggregators._dual_proj import dual_proj
from metaopt.aggregators._fish import Fish, fish, inner_product_gradient
from metaopt.aggregators._graddrop import graddrop
from metaopt.aggregators._gradnorm import GradNorm, GradNormState, gradnorm, row_lengths
from metaopt.aggregators._imtl_g import imtl_g
from metaopt.aggregators._mean import mean
from metaopt.aggregators._mgda import mgda
from metaopt.aggregators._modulation import AGM, AGMState, agm, modulate, shapley_outputs
from metaopt.aggregators._nash_mtl import nash_mtl
from metaopt.aggregators._pcgrad import pcgrad
from metaopt.aggregators._task_flat import task_flat
from metaopt.aggregators._upgrad import upgrad

__all__ = [
    "AGM",
    "AGMState",
    "AggregateState",
    "Aggregator",
    "Fish",
    "GradNorm",
    "GradNormState",
    "aggregate",
    "agm",
    "aligned_mtl",
    "by_gramian",
    "cagrad",
    "combine",
    "dual_proj",
    "fish",
    "graddrop",
    "gradnorm",
    "gramian",
    "imtl_g",
    "inner_product_gradient",
    "mean",
    "mgda",
    "modulate",
    "nash_mtl",
    "pcgrad",
    "row_lengths",
    "shapley_outputs",
    "task_flat",
    "upgrad",
    "value_and_jacobian",
]
