import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import finetune_prototypes, prototypes
from metaopt.algorithms._learner import sample_episode
from tests.algorithms.embeddings import WAYS, embed, family, init, noisy, pool
from tests.helpers import central_differences, relative_error


def learner(rate, **settings):
    settings = {"augment": noisy, "num_steps": 2, "num_tasks": 2, **settings}
    return finetune_prototypes(family(), embed, optax.sgd(rate), **settings)


def episode_and_theta():
    return sample_episode(family(), pool(), jax.random.key(2)), init(jax.random.key(1))


def test_a_rate_of_zero_is_no_fine_tuning(x64):
    episode, theta = episode_and_theta()
    rest = (episode.task_params, episode.support, jax.random.key(3))
    tuned = jax.jit(learner(0.0).adapt)(theta, *rest)
    assert relative_error(tuned, prototypes(family(), embed).adapt(theta, *rest)) < 1e-12


def test_it_descends_on_distorted_copies_of_the_support_set(x64):
    """With a distortion that is not random, against a loop over central differences."""
    episode, theta = episode_and_theta()
    inputs, labels = episode.support.inputs, np.asarray(episode.support.labels)

    def pseudo_loss(body):
        features = embed(body, inputs)
        means = jnp.stack([features[labels == k].mean(0) for k in range(WAYS)])
        views = embed(body, 0.8 * inputs)
        logits = -((views[:, None] - means[None]) ** 2).sum(-1)
        return -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels].mean()

    body = np.asarray(theta)
    for _ in range(2):
        slope = central_differences(pseudo_loss, jnp.asarray(body), 1e-4)
        body = body - 0.3 * slope.reshape(body.shape)
    made = learner(0.3, augment=lambda inputs, key: 0.8 * inputs, probability=1.0)
    tuned = jax.jit(made.adapt)(theta, episode.task_params, episode.support, jax.random.key(3))
    assert relative_error(tuned.body, body) < 1e-6
    features = np.asarray(embed(tuned.body, inputs))
    means = np.stack([features[labels == k].mean(0) for k in range(WAYS)])
    np.testing.assert_allclose(tuned.head.w, 2 * means.T, rtol=1e-10)


def test_at_probability_zero_nothing_is_distorted(x64):
    episode, theta = episode_and_theta()
    never, plain, always = (
        jax.jit(made.adapt)(theta, episode.task_params, episode.support, jax.random.key(3))
        for made in (
            learner(0.3, probability=0.0),
            learner(0.3, augment=lambda inputs, key: inputs),
            learner(0.3, probability=1.0),
        )
    )
    assert relative_error(never, plain) < 1e-12
    assert relative_error(always, plain) > 1e-6


def test_training_is_that_of_prototypes(x64):
    _, theta = episode_and_theta()
    first = jax.jit(learner(0.3).estimator.estimate)(theta, (), pool(), jax.random.key(2))[0]
    plain = prototypes(family(), embed, num_tasks=2).estimator
    second = jax.jit(plain.estimate)(theta, (), pool(), jax.random.key(2))[0]
    assert relative_error(first.grad, second.grad) < 1e-12


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="finetune_prototypes: num_steps must be at least 1"):
        learner(0.1, num_steps=0)
