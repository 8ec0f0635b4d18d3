import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import data, tasks
from metaopt.algorithms import proto_transfer, prototypes
from metaopt.algorithms._learner import sample_episode
from tests.algorithms.embeddings import (
    cross_entropy,
    embed,
    family,
    features_of,
    init,
    noisy,
    pool,
)
from tests.helpers import central_differences, relative_error


def learner(inner_opt=None, **settings):
    settings = {"augment": noisy, "num_images": 6, "num_views": 2, **settings}
    return proto_transfer(family(), embed, inner_opt or optax.sgd(0.1), **settings)


def test_every_image_is_a_class_of_its_own(x64):
    theta = init(jax.random.key(1))
    # All images are drawn, so that only their order is random, which does not matter.
    images = np.asarray(pool().outer.pool.inputs).reshape(24, 2, 2, 1)
    made = learner(augment=lambda inputs, key: 0.9 * inputs, num_images=24)
    loss = jax.jit(made.estimator.estimate)(theta, (), pool(), jax.random.key(2))[0].loss
    means, views = features_of(theta, images), features_of(theta, 0.9 * images)
    distances = ((views[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(loss, cross_entropy(-distances, np.arange(24)), rtol=1e-10)


def test_the_meta_gradient_agrees_with_central_differences(x64):
    theta = init(jax.random.key(1))

    def estimate(theta):
        return learner().estimator.estimate(theta, (), pool(), jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    assert relative_error(jax.jit(estimate)(theta).grad, differences) < 1e-6


def test_the_estimator_does_not_read_labels(x64):
    """Images dealt to other classes make the same batches, up to their order."""
    theta, everything = init(jax.random.key(1)), {"num_images": 24}
    inputs = pool().outer.pool.inputs.reshape(24, 2, 2, 1)
    shuffled = inputs[np.random.default_rng(0).permutation(24)].reshape(4, 6, 2, 2, 1)
    made = learner(augment=lambda inputs, key: 0.9 * inputs, **everything)
    first, second = (
        jax.jit(made.estimator.estimate)(theta, (), pools, jax.random.key(2))[0].loss
        for pools in (pool(), tasks.episodes(data.ClassPool(shuffled)))
    )
    np.testing.assert_allclose(first, second, rtol=1e-10)


def test_the_head_starts_at_prototypes_and_descends_on_the_support_set(x64):
    theta = init(jax.random.key(1))
    episode = sample_episode(family(), pool(), jax.random.key(2))
    rest = (episode.task_params, episode.support, jax.random.key(3))
    start = prototypes(family(), embed).adapt(theta, *rest)
    untuned = learner(num_steps=0).adapt(theta, *rest)
    assert relative_error(untuned, start) < 1e-12

    w, b = np.asarray(start.head.w), np.asarray(start.head.b)
    features, labels = features_of(theta, episode.support.inputs), episode.support.labels
    for _ in range(2):
        logits = features @ w + b
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        slope = (p - np.eye(3)[np.asarray(labels)]) / len(labels)
        w, b = w - 0.1 * features.T @ slope, b - 0.1 * slope.sum(0)
    tuned = jax.jit(learner(num_steps=2).adapt)(theta, *rest)
    np.testing.assert_allclose(tuned.head.w, w, rtol=1e-9)
    np.testing.assert_allclose(tuned.head.b, b, rtol=1e-9)
    np.testing.assert_array_equal(tuned.body, theta)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_images must be an integer of at least 1"):
        learner(num_images=0)
    theta = init(jax.random.key(0))
    with pytest.raises(ValueError, match="num_images=25, but the pool has 24 examples"):
        learner(num_images=25).estimator.estimate(theta, (), pool(), jax.random.key(1))
    with pytest.raises(ValueError, match=r"pass metaopt\.tasks\.episodes"):
        learner().estimator.estimate(jnp.ones((4, 5)), (), (), jax.random.key(1))
