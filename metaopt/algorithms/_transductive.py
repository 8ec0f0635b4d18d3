"""Transductive classification: the query set is clustered as a whole, around the support set.

Of all assignments p of examples z to classes and prototypes w, with the support's p fixed,

    F(p, w) = Σᵢₖ pᵢₖ |zᵢ - wₖ|² / τ - (λ/2) Σᵢⱼ sᵢⱼ pᵢ·pⱼ + Σᵢₖ pᵢₖ ln pᵢₖ

is minimised by turns: of the concave second term a linear bound is taken, so that all assignments
move at once and F never grows,

    pᵢ ∝ exp(-|zᵢ - wₖ|² / τ + λ Σⱼ sᵢⱼ pⱼₖ),    wₖ = Σᵢ pᵢₖ zᵢ / Σᵢ pᵢₖ.

λ = 0 is soft k-means with labelled examples. Ziko et al. 2021, arXiv:2106.09516. The bound holds
for a positive semidefinite affinity s only, which that of nearest neighbours, A, is not: here
s = ½ (I + D^-½ A D^-½), whose eigenvalues are in [0, 1]. Clusters are as large as the query set
makes them; nothing keeps them equal, but an unbalanced query set still pulls prototypes apart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metaopt.algorithms._embedding import num_ways_of
from metaopt.algorithms._prototypes import class_means
from metaopt.core import Params, Scalar, TaskFamily, checked
from metaopt.estimators._shared import check_count, check_positive
from metaopt.tasks import Metrics
from metaopt.tasks._few_shot_embedding import Embed


class Clusters(NamedTuple):
    """What transductive clustering finds.

    Attributes:
        assignments: probabilities of the classes, one row per query.
        prototypes: of the classes.
        objective: F before every round and after the last one; it never grows.
    """

    assignments: Float[Array, "queries ways"]
    prototypes: Float[Array, "ways features"]
    objective: Float[Array, " rounds+1"]


class Remembered(NamedTuple):
    """What transductive classification adapts to.

    Attributes:
        body: parameters of the embedding.
        features: of the support set.
        labels: of the support set.
    """

    body: Params
    features: Float[Array, "n features"]
    labels: Int[Array, " n"]


class Transduction(NamedTuple):
    """A way to classify query sets as a whole, for `few_shot_scores(family, adapt, ...)`.

    Attributes:
        family: the tasks; its `loss` takes what `adapt` gives, and sees a query set at once.
        adapt: `(theta, task_params, support, key) -> Remembered`, with theta the embedding's body.
    """

    family: TaskFamily
    adapt: Callable[..., Remembered]


def neighbour_affinity(
    features: Float[Array, "n features"], *, num_neighbours: int = 3
) -> Float[Array, "n n"]:
    """A positive semidefinite affinity: ½ (I + D^-½ A D^-½), with A that of nearest neighbours.

    Args:
        features: of all examples.
        num_neighbours: A is 1 where either of two examples is among so many nearest ones of the
            other, itself not counted. Static.

    Returns:
        A symmetric matrix with eigenvalues in [0, 1].

    Raises:
        ValueError: for a count below 1; when traced, with fewer examples than neighbours.
    """
    check_count("neighbour_affinity", num_neighbours=num_neighbours)
    count = len(features)
    if count <= num_neighbours:
        raise ValueError(
            f"neighbour_affinity: num_neighbours={num_neighbours}, but there are only {count} "
            f"examples; use at most {count - 1}."
        )
    distance = _squared_distances(features, features) + jnp.diag(jnp.full(count, jnp.inf))
    _, nearest = jax.lax.top_k(-jax.lax.stop_gradient(distance), num_neighbours)
    chosen = jax.nn.one_hot(nearest, count, dtype=features.dtype).sum(axis=1)
    either = jnp.maximum(chosen, chosen.T)
    scale = jax.lax.rsqrt(either.sum(axis=1))
    return 0.5 * (jnp.eye(count, dtype=features.dtype) + scale[:, None] * either * scale[None])


@checked
def soft_clusters(
    features: Float[Array, "queries features"],
    support: Float[Array, "n features"],
    labels: Int[Array, " n"],
    *,
    num_ways: int,
    temperature: Scalar = 0.1,
    pull: Scalar = 0.0,
    num_neighbours: int = 3,
    num_rounds: int = 15,
) -> Clusters:
    """Clusters queries around labelled examples.

    Args:
        features: of the query set.
        support: features of the labelled examples, whose assignments stay.
        labels: their classes, from 0.
        num_ways: classes. Static.
        temperature: τ, in units of a squared distance. Traced.
        pull: λ, how much neighbours are to agree. Traced.
        num_neighbours: of `neighbour_affinity`. Static.
        num_rounds: rounds. Static.

    Returns:
        See `Clusters`.

    Raises:
        ValueError: for a count below 1 or a `temperature` that is not positive.
    """
    check_count(
        "soft_clusters", num_ways=num_ways, num_rounds=num_rounds, num_neighbours=num_neighbours
    )
    check_positive("soft_clusters", temperature=temperature)
    both = jnp.concatenate([support, features])
    fixed = jax.nn.one_hot(jnp.asarray(labels), num_ways, dtype=both.dtype)
    similar = neighbour_affinity(both, num_neighbours=num_neighbours)

    def objective(p, means):
        distance = jnp.sum(p * _squared_distances(both, means)) / temperature
        agreement = 0.5 * pull * jnp.sum(p * (similar @ p))
        # p ln p is 0 at 0; the support's rows are constant.
        return distance - agreement + jnp.sum(jax.scipy.special.xlogy(p, p))

    def assign(p, means):
        logits = -_squared_distances(both, means) / temperature + pull * (similar @ p)
        return jnp.concatenate([fixed, jax.nn.softmax(logits)[len(fixed) :]])

    def recentre(p):
        return p.T @ both / p.sum(axis=0)[:, None]

    def one_round(carry, _):
        p, means = carry
        p = assign(p, means)
        means = recentre(p)
        return (p, means), objective(p, means)

    means = class_means(support, labels, num_ways=num_ways)
    uniform = jnp.full((len(features), num_ways), 1 / num_ways, both.dtype)
    p = jnp.concatenate([fixed, uniform])
    (p, means), after = jax.lax.scan(one_round, (p, means), None, length=num_rounds)
    before = objective(
        jnp.concatenate([fixed, uniform]), class_means(support, labels, num_ways=num_ways)
    )
    return Clusters(p[len(fixed) :], means, jnp.concatenate([before[None], after]))


@checked
def transductive(
    family: TaskFamily,
    embed: Embed,
    *,
    temperature: Scalar = 0.1,
    pull: Scalar = 0.0,
    num_neighbours: int = 3,
    num_rounds: int = 15,
) -> Transduction:
    """Classifies the query set of a task as a whole, in any embedding.

    Args:
        family: made by `metaopt.tasks.few_shot_embedding`; its tasks and batches are kept.
        embed: the embedding, normalised if distances are to be between directions.
        temperature: τ. Traced.
        pull: λ. Traced.
        num_neighbours: as in `neighbour_affinity`. Static.
        num_rounds: rounds. Static.

    Returns:
        A family and what adapts to its support sets.

    Raises:
        ValueError: as in `soft_clusters`, or for a family of another kind.
    """
    num_ways = num_ways_of("transductive", family)
    check_count("transductive", num_rounds=num_rounds, num_neighbours=num_neighbours)
    check_positive("transductive", temperature=temperature)

    def adapt(theta, task_params, support, key):
        del task_params, key
        return Remembered(theta, embed(theta, support.inputs), support.labels)

    def loss(params, task_params, batch, key):
        del task_params, key
        found = soft_clusters(
            embed(params.body, batch.inputs),
            params.features,
            params.labels,
            num_ways=num_ways,
            temperature=temperature,
            pull=pull,
            num_neighbours=num_neighbours,
            num_rounds=num_rounds,
        ).assignments
        of_label = jnp.take_along_axis(found, batch.labels[:, None], axis=1)
        value = -jnp.log(jnp.maximum(of_label, jnp.finfo(found.dtype).tiny)).mean()
        return value, Metrics((found.argmax(axis=-1) == batch.labels).astype(value.dtype).mean())

    return Transduction(family._replace(loss=loss), adapt)


def _squared_distances(x, y) -> Float[Array, "n m"]:
    return jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
