import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.linear_model

from metaopt import data, tasks
from metaopt.algorithms import Distilled, good_embedding, logistic_regression
from metaopt.algorithms._learner import sample_episode
from tests.algorithms.embeddings import cross_entropy, embed, family, features_of, pool
from tests.helpers import central_differences, ravel, relative_error


def learner(**settings):
    return good_embedding(
        family(tasks.unit_features(embed)), embed, num_classes=4, batch_size=8, **settings
    )


def test_logistic_regression_agrees_with_scikit_learn(x64):
    features = jax.random.normal(jax.random.key(0), (9, 4))
    labels = jnp.arange(9) % 3
    solve = jax.jit(
        lambda features, strength: logistic_regression(
            features, labels, num_ways=3, strength=strength, num_steps=40
        )
    )
    for strength in (1.0, 0.2):
        head = solve(features, strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = sklearn.linear_model.LogisticRegression(C=strength, tol=1e-12, max_iter=1000)
            peer.fit(np.asarray(features), np.asarray(labels))
        np.testing.assert_allclose(head.w, peer.coef_.T, atol=1e-6)
        # Biases are free up to a constant.
        np.testing.assert_allclose(
            head.b - head.b.mean(), peer.intercept_ - peer.intercept_.mean(), atol=1e-6
        )


def test_adaptation_is_logistic_regression_on_normalised_features(x64):
    made, theta = learner(), learner().init(jax.random.key(1))
    episode = sample_episode(family(), pool(), jax.random.key(2))
    adapt = jax.jit(made.adapt)
    params = adapt(theta, episode.task_params, episode.support, jax.random.key(3))
    features = features_of(theta.body, episode.support.inputs)
    features = features / np.linalg.norm(features, axis=-1, keepdims=True)
    head = logistic_regression(jnp.asarray(features), episode.support.labels, num_ways=3)
    assert relative_error(params.head, head) < 1e-6
    np.testing.assert_array_equal(params.body, theta.body)


def draws(made, theta, pools):
    """What the estimator draws is seen through its loss: class by class."""
    return jax.jit(made.estimator.estimate)(theta, (), pools, jax.random.key(5))[0]


def test_the_meta_gradient_agrees_with_central_differences(x64):
    theta = learner().init(jax.random.key(1))
    assert theta.head.w.shape == (5, 4)
    grad = jax.jit(lambda theta: draws(learner(), theta, pool()).grad)(theta)
    differences = central_differences(lambda theta: draws(learner(), theta, pool()).loss, theta)
    assert relative_error(ravel(grad), differences) < 1e-6


def test_training_is_classification_of_all_base_classes(x64):
    """With one image per class, a loss is that of how often each class was drawn."""
    theta = learner().init(jax.random.key(1))
    classes = pool().outer.pool.inputs[:, :1]
    one = tasks.episodes(data.ClassPool(classes))
    logits = features_of(theta.body, classes[:, 0]) @ np.asarray(theta.head.w)
    losses = np.array([cross_entropy(logits[k : k + 1], [k]) for k in range(4)])
    found = jax.jit(
        jax.vmap(lambda key: learner().estimator.estimate(theta, (), one, key)[0].loss)
    )(jax.random.split(jax.random.key(5), 3))
    counts = np.array([x for x in itertools.product(range(9), repeat=4) if sum(x) == 8])
    assert np.all(np.abs(counts @ losses / 8 - np.asarray(found)[:, None]).min(axis=1) < 1e-9)
    assert len(set(np.asarray(found))) == 3


def test_the_soft_part_is_the_divergence_from_the_teacher_at_a_temperature(x64):
    theta, teacher = (learner().init(jax.random.key(seed)) for seed in (1, 2))
    # With one image for all classes every draw has the same soft part.
    image = pool().outer.pool.inputs[:1, :1]
    same = tasks.episodes(data.ClassPool(jnp.tile(image, (4, 1, 1, 1, 1))))
    made = learner(temperature=2.0, hard_share=0.0)
    loss = draws(made, theta, Distilled(same, teacher)).loss

    def probabilities(theta):
        logits = features_of(theta.body, image[0]) @ np.asarray(theta.head.w) / 2
        return np.exp(logits[0]) / np.exp(logits[0]).sum()

    p, q = probabilities(teacher), probabilities(theta)
    np.testing.assert_allclose(loss, 4 * np.sum(p * np.log(p / q)), rtol=1e-10)


def test_a_student_equal_to_its_teacher_has_only_the_share_of_the_labels(x64):
    theta = learner().init(jax.random.key(1))
    plain = draws(learner(), theta, pool())
    student = draws(learner(hard_share=0.3), theta, Distilled(pool(), theta))
    np.testing.assert_allclose(student.loss, 0.3 * plain.loss, rtol=1e-10)
    assert relative_error(student.grad, optax.tree.scale(0.3, plain.grad)) < 1e-10


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 1"):
        good_embedding(family(), embed, num_classes=0)
    made = good_embedding(family(), embed, num_classes=5)
    with pytest.raises(ValueError, match="the pool has 4 classes, but num_classes=5"):
        draws(made, made.init(jax.random.key(0)), pool())
    with pytest.raises(ValueError, match="strength must be positive"):
        logistic_regression(jnp.ones((2, 2)), jnp.arange(2), num_ways=2, strength=0.0)
    with pytest.raises(ValueError, match=r"pass metaopt\.tasks\.episodes"):
        draws(learner(), learner().init(jax.random.key(0)), ())
