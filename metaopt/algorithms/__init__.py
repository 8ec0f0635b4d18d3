"""Named compositions of a task family, an inner loop and an estimator."""

from metaopt.algorithms._maml import adapt, maml

__all__ = ["adapt", "maml"]
