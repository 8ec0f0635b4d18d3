"""Few-shot classification by a perceptron on flattened inputs.

Santoro et al. 2016, arXiv:1605.06065 and Finn et al. 2017, arXiv:1703.03400, §5.2 use one on
characters, theirs with batch normalisation, which this one is without.
"""

import math
from collections.abc import Sequence

from metaopt.core import TaskFamily, checked
from metaopt.tasks._few_shot import few_shot_family
from metaopt.tasks._mlp import dense_layers


@checked
def few_shot_mlp(
    pool_shape: tuple[int, ...],
    *,
    num_ways: int = 5,
    num_shots: int = 1,
    num_queries: int = 15,
    hidden: Sequence[int] = (64, 64),
    activation: str = "relu",
) -> TaskFamily:
    """N-way K-shot classification of flattened inputs by a multilayer perceptron.

    Args:
        pool_shape: shape of the pool's inputs, [classes, examples, ...]. Static.
        num_ways: as in `few_shot`. Static.
        num_shots: as in `few_shot`. Static.
        num_queries: as in `few_shot`. Static.
        hidden: widths of the hidden layers; `()` for a linear classifier. Static.
        activation: as in `mlp`. Static.

    Returns:
        A family as `few_shot` makes it, with `params` as in `mlp`.

    Raises:
        ValueError: as in `few_shot`; or if a width is below 1 or `activation` is unknown.
    """
    size = math.prod(pool_shape[2:])
    init, apply = dense_layers("few_shot_mlp", (size, *hidden, num_ways), activation)
    return few_shot_family(
        "few_shot_mlp",
        init,
        lambda params, batch: apply(params, batch.inputs.reshape(len(batch.inputs), -1)),
        pool_shape,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
    )
