"""Class means that are kept up to date along a stream: prototypes with a small memory.

    m = (sum of embed(x), number of x) per label;    c_k = sum_k / number_k

Every support set adds to the sums of its labels, so that after the stream the prototypes are those
of all its examples at once, whatever the order. Prototypes as in Snell et al. 2017,
arXiv:1703.05175; on streams, Antoniou et al. 2020, arXiv:2004.11967.
"""

import jax
import jax.numpy as jnp

from metaopt.algorithms._embedding import num_features_of, num_ways_of
from metaopt.algorithms._stream import StreamLearner
from metaopt.core import TaskFamily, checked
from metaopt.tasks import Embedded, LinearHead
from metaopt.tasks._few_shot_embedding import Embed


@checked
def running_prototypes(family: TaskFamily, embed: Embed) -> StreamLearner:
    """Prototypes from a stream, with `theta` the body of an embedding.

    Args:
        family: made by `metaopt.tasks.few_shot_embedding`, or `few_shot_continual` of one.
        embed: the embedding it was made with.

    Returns:
        A learner whose memory is the sum of features and the number of examples of every label. A
        label without examples is never predicted before one that has some.

    Raises:
        ValueError: for a family of another kind.
    """
    num_ways = num_ways_of("running_prototypes", family)
    num_features = num_features_of("running_prototypes", family)

    def start(theta):
        dtype = jnp.result_type(*jax.tree.leaves(theta), jnp.float32)
        return jnp.zeros((num_ways, num_features), dtype), jnp.zeros(num_ways, dtype)

    def observe(theta, memory, task_params, support, key):
        del task_params, key
        sums, counts = memory
        members = jax.nn.one_hot(support.labels, num_ways, dtype=sums.dtype)
        features = embed(theta, support.inputs).astype(sums.dtype)
        return sums + members.T @ features, counts + members.sum(axis=0)

    def finish(theta, memory):
        sums, counts = memory
        means = sums / jnp.maximum(counts, 1)[:, None]
        # Far below any distance between features, and still finite in float32.
        bias = jnp.where(counts > 0, -jnp.sum(means**2, axis=-1), -1e9)
        return Embedded(theta, LinearHead(2 * means.T, bias))

    return StreamLearner(start, observe, finish)
