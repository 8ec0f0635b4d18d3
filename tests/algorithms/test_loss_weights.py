import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, data
from metaopt.algorithms import LossWeightsTheta, loss_weights, maml, support_weights
from tests.algorithms import rows
from tests.algorithms.tanh_network import (
    FAMILY,
    estimate,
    params,
    perturbed,
    support_set,
)
from tests.helpers import central_differences, relative_error

SETTINGS = {"num_features": 2, "hidden": (3,), "num_steps": 2, "num_tasks": 2}


def key():
    return jax.random.key(0)


def learner_with(**settings):
    return loss_weights(FAMILY, optax.sgd(0.05), **{**SETTINGS, **settings})


@pytest.mark.compiles
def test_at_first_all_weights_are_1_and_it_is_maml(x64):
    learner = learner_with()
    theta = learner.init(key())._replace(params=params())
    np.testing.assert_array_equal(support_weights(theta, support_set()), 1.0)
    ours = estimate(learner, theta)
    theirs = estimate(maml(FAMILY, optax.sgd(0.05), num_steps=2, num_tasks=2), params())
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert relative_error(ours.grad.params, theirs.grad) < 1e-12
    assert np.any(ours.grad.weights[1][-1]["w"] != 0)


def test_a_step_follows_the_weighted_mean_of_the_examples_gradients(x64):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(6, 2)), rng.normal(size=(6, 1))

    def loss(params, task_params, batch, key):
        return jnp.mean((batch.inputs @ params - batch.labels) ** 2), ()

    family = core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.array([[0.3], [-0.2]]),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )
    learner = loss_weights(family, optax.sgd(0.1), num_features=3, hidden=(4,), num_steps=1)
    theta = perturbed(learner.init(key()))
    support = data.Pool(jnp.asarray(inputs), jnp.asarray(targets))
    adapted = learner.adapt(theta, (), support, key())

    embed, net = jax.tree.map(np.asarray, theta.weights)
    features = np.concatenate([inputs, targets], axis=1)
    embedding = (features @ embed[0]["w"] + embed[0]["b"]).mean(axis=0)
    start = np.asarray(theta.params)
    step = np.zeros((2, 1))
    for x, y, row in zip(inputs, targets, features, strict=True):
        hidden = np.concatenate([row, embedding]) @ net[0]["w"] + net[0]["b"]
        hidden = hidden / (1 + np.exp(-hidden))
        weight = 1 + np.tanh(hidden @ net[1]["w"] + net[1]["b"])
        step += weight * 2 * (x @ start - y) * x[:, None] / len(inputs)
    np.testing.assert_allclose(adapted, start - 0.1 * step, rtol=1e-10)


def test_weights_stay_between_0_and_2_and_follow_their_examples(x64):
    theta = learner_with().init(key())
    support = support_set()
    wild = theta._replace(weights=perturbed(theta.weights, scale=0.3))
    weights = np.asarray(support_weights(wild, support))
    assert np.all((weights > 0) & (weights < 2))
    assert np.ptp(weights) > 0.1
    turned = support_weights(wild, jax.tree.map(lambda x: x[::-1], support))
    np.testing.assert_allclose(turned, weights[::-1], rtol=1e-10)
    # The others matter: without the last example the first ones have other weights.
    fewer = np.asarray(support_weights(wild, jax.tree.map(lambda x: x[:-1], support)))
    assert np.max(np.abs(fewer - weights[:-1])) > 1e-3


def test_the_penalty_is_the_mean_squared_distance_of_the_weights_from_1(x64):
    theta = perturbed(learner_with().init(key()))
    family = FAMILY._replace(batch=lambda data, task_params, key: data)
    support, query = support_set(12), support_set(13)

    @jax.jit
    def loss(penalty):
        learner = loss_weights(family, optax.sgd(0.05), penalty=penalty, **SETTINGS)
        return estimate(learner, theta, core.Split(support, query)).loss

    expected = np.mean((np.asarray(support_weights(theta, support)) - 1) ** 2)
    np.testing.assert_allclose(loss(3.0) - loss(1.0), 2 * expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["reverse", "mixed"])
def test_agrees_with_central_differences(x64, gradient):
    learner = learner_with(gradient=gradient, penalty=0.1)
    theta = perturbed(learner.init(key()))

    def loss(theta):
        return learner.estimator.estimate(theta, (), (), jax.random.key(14))[0].loss

    assert relative_error(estimate(learner, theta).grad, central_differences(loss, theta)) < 1e-6


def test_classes_are_seen_as_one_hot_vectors(x64):
    family, pool = rows.linear_few_shot(), rows.episodes()
    theta = perturbed(
        loss_weights(family, optax.sgd(0.1), num_features=6, hidden=(3,)).init(key()).weights
    )
    task = family.sample(key())
    support = family.batch(pool.inner, task, key())
    as_targets = data.Pool(support.inputs, jnp.eye(2)[support.labels])
    first, second = (
        support_weights(LossWeightsTheta((), theta), batch) for batch in (support, as_targets)
    )
    np.testing.assert_array_equal(first, second)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="loss_weights: gradient='first_order' does not reach"):
        learner_with(gradient="first_order")
    with pytest.raises(ValueError, match="loss_weights: num_features=0"):
        learner_with(num_features=0)
    with pytest.raises(ValueError, match="loss_weights: num_steps must be at least 1"):
        learner_with(num_steps=0)
    odd = learner_with(num_features=1)
    with pytest.raises(ValueError, match="loss_weights: num_features=1, but an input has 1"):
        support_weights(odd.init(key()), support_set())
