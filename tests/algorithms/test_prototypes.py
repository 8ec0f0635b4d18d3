import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.algorithms import cosine_head, few_shot_scores, prototype_head, prototypes
from metaopt.algorithms._learner import sample_episode
from tests.algorithms.embeddings import (
    WAYS,
    cross_entropy,
    embed,
    family,
    features_of,
    init,
    pool,
)
from tests.helpers import central_differences, relative_error


def means_of(features, labels):
    return np.stack([features[np.asarray(labels) == k].mean(axis=0) for k in range(WAYS)])


def test_the_query_loss_is_that_of_squared_distances_to_class_means(x64):
    learner = prototypes(family(), embed, num_tasks=1)
    theta = init(jax.random.key(1))
    episode = sample_episode(family(), pool(), jax.random.key(2))
    run = jax.jit(learner.adapt)
    params = run(theta, episode.task_params, episode.support, jax.random.key(3))
    loss, _ = family().loss(params, episode.task_params, episode.query, jax.random.key(4))

    means = means_of(features_of(theta, episode.support.inputs), episode.support.labels)
    queries = features_of(theta, episode.query.inputs)
    distances = ((queries[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(loss, cross_entropy(-distances, episode.query.labels), rtol=1e-10)


def test_the_cosine_head_scales_cosines_with_class_means(x64):
    features = jax.random.normal(jax.random.key(0), (6, 4))
    features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    labels = jnp.array([0, 1, 2, 2, 0, 1])
    head = cosine_head(features, labels, num_ways=WAYS, scale=7.0)
    means = means_of(np.asarray(features), labels)
    cosines = np.asarray(features) @ means.T / np.linalg.norm(means, axis=-1)
    np.testing.assert_allclose(features @ head.w + head.b[None], 7 * cosines, rtol=1e-10)


def test_the_meta_gradient_agrees_with_central_differences(x64):
    for make, head in (
        (embed, prototype_head),
        (tasks.unit_features(embed), functools.partial(cosine_head, scale=3.0)),
    ):
        learner = prototypes(family(make), make, head=head, num_tasks=2)
        theta = init(jax.random.key(1))

        def loss(theta, learner=learner):
            return learner.estimator.estimate(theta, (), pool(), jax.random.key(2))[0]

        differences = central_differences(lambda theta: loss(theta).loss, theta)
        assert relative_error(jax.jit(loss)(theta).grad, differences) < 1e-6


def test_separated_classes_are_told_apart():
    inputs = 0.01 * jax.random.normal(jax.random.key(0), (4, 6, 2, 2, 1))
    apart = inputs + jnp.eye(4).reshape(4, 1, 2, 2, 1)
    data = jax.tree.map(lambda _: apart, pool())
    learner = prototypes(family(), embed)
    scores = jax.jit(few_shot_scores(family(), learner.adapt, num_tasks=4))
    theta = init(jax.random.key(1))
    assert np.all(scores(theta, data, jax.random.key(2)).aux.accuracy == 1.0)


def test_an_example_that_is_missing_leaves_finite_heads():
    head = prototype_head(jnp.ones((2, 3)), jnp.array([0, 0]), num_ways=2)
    np.testing.assert_allclose(head.w, [[2, 0]] * 3)
    np.testing.assert_allclose(head.b, [-3, 0])


def test_a_family_without_a_head_is_refused():
    with pytest.raises(ValueError, match="prototypes: the family's params are a"):
        prototypes(tasks.quadratic(dim=2), embed)
