"""MetaModulation: prototypes whose hidden features another task modulates, with uncertainty.

    z ← (1 + s) z + t,    (s, t) ~ N(μ, e^v),    (μ, v) = V · mean of z' over another task + u
    L = CE(z modulated) + β CE(z) + λ KL(N(μ, e^v) || N(0, I))

The noise is reparameterised and its loss averaged over draws; the second term keeps the embedding
useful without modulation, which is how it is tested. Sun et al. 2023, arXiv:2305.10309, with one
modulated layer and a linear map; there, every block of a deep network has its modulation, which
depends on that of the block below, and 100 draws are averaged. v is a logarithm of a variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt import estimators
from metaopt.algorithms._embedding import adapt_head, head_loss, initial_body, num_ways_of
from metaopt.algorithms._learner import MetaLearner, sample_episode
from metaopt.algorithms._prototypes import prototype_head
from metaopt.core import Params, Scalar, TaskFamily, checked
from metaopt.estimators._shared import check_count, check_tasks


class Modulation(NamedTuple):
    """A Gaussian over scales, less 1, and shifts of features.

    Attributes:
        mean: of both, one row each.
        log_variance: of both.
    """

    mean: Float[Array, "2 features"]
    log_variance: Float[Array, "2 features"]

    def divergence(self) -> Float[Array, ""]:
        """KL(N(μ, e^v) || N(0, I)), in nats."""
        mean, log_variance = self
        return 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance)


class ModulatedTheta(NamedTuple):
    """Meta-parameters.

    Attributes:
        body: of the embedding.
        w: V, from pooled features to a modulation.
        b: u.
    """

    body: Params
    w: Float[Array, "features 4*features"]
    b: Float[Array, " 4*features"]


def modulate(
    hidden: Float[Array, "n features"], modulation: Modulation, key: PRNGKeyArray
) -> Float[Array, "n features"]:
    """Scales and shifts features by one draw of a modulation, differentiable in its numbers.

    Args:
        hidden: features of one or several examples.
        modulation: the distribution; a log variance of -inf makes it plain FiLM.
        key: consumed; one draw for all rows.

    Returns:
        Features of the same shape.
    """
    noise = jax.random.normal(key, modulation.mean.shape, modulation.mean.dtype)
    scale, shift = modulation.mean + jnp.exp(0.5 * modulation.log_variance) * noise
    return (1 + scale)[None] * hidden + shift[None]


@checked
def meta_modulation(
    family: TaskFamily,
    below: Callable[[Params, Array], Array],
    above: Callable[[Params, Array], Array],
    *,
    num_features: int,
    original: Scalar = 1.0,
    penalty: Scalar = 1e-3,
    log_variance: Scalar = -4.0,
    num_samples: int = 4,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
) -> MetaLearner:
    """Prototypes, trained on tasks that other tasks modulate.

    Args:
        family: made by `metaopt.tasks.few_shot_embedding` of `above` after `below`.
        below: `(body, inputs) -> hidden` of shape [n, num_features], which is modulated.
        above: `(body, hidden) -> features`.
        num_features: width of the modulated layer. Static.
        original: β, the weight of the loss without modulation. Traced.
        penalty: λ, the weight of the divergence. Traced.
        log_variance: where v starts; μ starts at 0. Traced.
        num_samples: draws of a modulation that are averaged. Static.
        num_tasks: pairs of tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.

    Returns:
        A learner; `theta` is a `ModulatedTheta`, and adaptation is that of `prototypes`.

    Raises:
        ValueError: for counts below 1, or a family of another kind.
    """
    check_count("meta_modulation", num_samples=num_samples, num_features=num_features)
    check_tasks("meta_modulation", num_tasks, tasks_at_once)
    num_ways = num_ways_of("meta_modulation", family)
    size = 2 * num_features

    def init(key):
        start = jnp.concatenate([jnp.zeros(size), jnp.full(size, log_variance)])
        return ModulatedTheta(initial_body(family)(key), jnp.zeros((num_features, 2 * size)), start)

    def query_loss(theta, episode, change):
        """The loss of prototypes whose hidden features are changed."""
        support, query = (
            above(theta.body, change(below(theta.body, batch.inputs)))
            for batch in (episode.support, episode.query)
        )
        head = prototype_head(support, episode.support.labels, num_ways=num_ways)
        return head_loss(head, query, episode.query.labels)

    def meta_loss(theta, data, key):
        key_first, key_second, key_noise = jax.random.split(key, 3)
        episode = sample_episode(family, data, key_first)
        other = sample_episode(family, data, key_second)
        pooled = below(theta.body, other.support.inputs).mean(axis=0)
        numbers = (pooled @ theta.w + theta.b).reshape(4, num_features)
        modulation = Modulation(numbers[:2], numbers[2:])

        def drawn(key):
            # Support and query sets are changed alike.
            change = lambda hidden: modulate(hidden, modulation, jax.random.clone(key))  # noqa: E731
            return query_loss(theta, episode, change)

        mixed = jax.vmap(drawn)(jax.random.split(key_noise, num_samples)).mean()
        plain = query_loss(theta, episode, lambda hidden: hidden)
        return mixed + original * plain + penalty * modulation.divergence()

    def embed(body, inputs):
        return above(body, below(body, inputs))

    by_means = adapt_head(embed, prototype_head, num_ways=num_ways)

    def adapt(theta, task_params, support, key):
        return by_means(theta.body, task_params, support, key)

    estimator = estimators.backprop(meta_loss, num_tasks=num_tasks, tasks_at_once=tasks_at_once)
    return MetaLearner(init, adapt, estimator)
