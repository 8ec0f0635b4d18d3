"""The mean of the gradients: what plain multi-task training follows.

A(J) = (1/m) Σᵢ gᵢ
"""

import jax
import jax.numpy as jnp

from metaopt.aggregators._aggregator import Aggregator, num_rows, wide
from metaopt.aggregators._gramian import preference_of
from metaopt.core import checked


@checked
def mean() -> Aggregator:
    """All objectives count the same, whether they conflict or not.

    Returns:
        An aggregator; its weights are 1/m.
    """

    def aggregate(jacobian, key=None):
        del key
        num_rows(jacobian)
        return jax.tree.map(lambda x: jnp.mean(wide(x), axis=0).astype(x.dtype), jacobian)

    def weights(gramian, key=None):
        del key
        return preference_of(None, gramian, "mean")

    return Aggregator(aggregate, weights)
