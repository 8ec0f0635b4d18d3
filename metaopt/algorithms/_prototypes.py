"""Prototypical networks: the nearest class mean in a learned space.

    c_k = mean of embed(x) over the support examples of class k
    logits_k(x) = -|embed(x) - c_k|²  =  2 c_k · embed(x) - |c_k|² + what all classes share

so that the classifier is a linear head, made by no gradient step. Snell et al. 2017 (NeurIPS),
arXiv:1703.05175, eq. 1, 2 and 8. With features of norm 1, `cosine_head` scales the cosine with the
mean's direction instead, the head of Hu et al. 2022, arXiv:2204.07305, §3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metaopt.algorithms._embedding import MakeHead, adapt_head, initial_body, num_ways_of
from metaopt.algorithms._learner import MetaLearner, query_estimator
from metaopt.core import Scalar, TaskFamily, checked
from metaopt.tasks import LinearHead
from metaopt.tasks._few_shot_embedding import Embed


def class_means(
    features: Float[Array, "n features"], labels: Int[Array, " n"], *, num_ways: int
) -> Float[Array, "ways features"]:
    """The mean of every class; 0 for a class without examples."""
    members = jax.nn.one_hot(jnp.asarray(labels), num_ways, dtype=features.dtype)
    counts = jnp.maximum(members.sum(axis=0), 1)
    return members.T @ features / counts[:, None]


def prototype_head(
    features: Float[Array, "n features"], labels: Int[Array, " n"], *, num_ways: int
) -> LinearHead:
    """The head whose softmax is that of negative squared distances to the class means.

    Args:
        features: of the support set.
        labels: their classes, from 0.
        num_ways: classes. Static.

    Returns:
        `W = 2 cᵀ` and `b = -|c|²`.
    """
    means = class_means(features, labels, num_ways=num_ways)
    return LinearHead(2 * means.T, -jnp.sum(means**2, axis=-1))


def cosine_head(
    features: Float[Array, "n features"],
    labels: Int[Array, " n"],
    *,
    num_ways: int,
    scale: Scalar = 10.0,
) -> LinearHead:
    """The head whose logits are scaled cosines with the class means, for features of norm 1.

    Args:
        features: of the support set, of norm 1, as from `metaopt.tasks.unit_features`.
        labels: their classes, from 0.
        num_ways: classes. Static.
        scale: of the logits, the inverse temperature. Traced.

    Returns:
        A head without bias.
    """
    means = class_means(features, labels, num_ways=num_ways)
    square = jnp.sum(means**2, axis=-1, keepdims=True)
    directions = means * jax.lax.rsqrt(square + jnp.finfo(means.dtype).tiny ** 0.5)
    weights = scale * directions.T
    return LinearHead(weights.astype(means.dtype), jnp.zeros(num_ways, means.dtype))


@checked
def prototypes(
    family: TaskFamily,
    embed: Embed,
    *,
    head: MakeHead = prototype_head,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
) -> MetaLearner:
    """An embedding in which the class means of a support set classify the query set.

    Args:
        family: made by `metaopt.tasks.few_shot_embedding`.
        embed: the embedding it was made with.
        head: `(features, labels, *, num_ways) -> LinearHead`; `prototype_head`, or `cosine_head`
            with a family of `unit_features`, its scale bound by `functools.partial`. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.

    Returns:
        A learner; `theta` is the body of the family's `params`. The family's normaliser clips: a
        task whose loss is above 1.5 ln N, as with features of a large scale, has no gradient. With
        `family._replace(normalise=core.keep_finite)` it has one.

    Raises:
        ValueError: for counts below 1, or a family of another kind.
    """
    adapt = adapt_head(embed, head, num_ways=num_ways_of("prototypes", family))
    estimator = query_estimator(
        "prototypes", family, adapt, num_tasks=num_tasks, tasks_at_once=tasks_at_once
    )
    return MetaLearner(initial_body(family), adapt, estimator)
