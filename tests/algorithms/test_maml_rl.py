import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import tasks
from metaopt.algorithms import maml, maml_rl, policy_gradient
from tests.helpers import standard_errors

MEANS = jnp.array([1.0, 0.2, -0.5])
LOGITS = jnp.array([0.1, -0.2, 0.3])
RATE = 2.0
NUM_SAMPLES = 200_000


def three_arms():
    """Without noise, the same in every task; the parameters are the logits."""
    environment = tasks.bandit(num_arms=3, noise=0.0)
    environment = environment._replace(sample=lambda key: tasks.BanditTask(MEANS))
    return environment, tasks.policy_of_logits(lambda key: LOGITS, lambda params, x: params)


def exact_gradients():
    """Of minus the return after a step on two pulls, with and without the odds of the pairs."""

    def adapted_return(logits, first, second):
        probs = jax.nn.softmax(logits)
        score = lambda arm: MEANS[arm] * (jax.nn.one_hot(arm, 3) - probs)  # noqa: E731
        adapted = logits + RATE * (score(first) + score(second)) / 2
        return jax.nn.softmax(adapted) @ MEANS

    def loss(logits, odds_of):
        odds = jax.nn.softmax(odds_of(logits))
        pairs = [(i, j) for i in range(3) for j in range(3)]
        return -sum(odds[i] * odds[j] * adapted_return(logits, i, j) for i, j in pairs)

    right = jax.grad(lambda x: loss(x, lambda y: y))(LOGITS)
    naive = jax.grad(lambda x: loss(x, jax.lax.stop_gradient))(LOGITS)
    return np.asarray(right), np.asarray(naive)


@functools.cache
def sampled_gradients(estimator):
    """One task each."""
    learner = maml_rl(
        *three_arms(),
        optax.sgd(RATE),
        horizon=1,
        estimator=estimator,
        num_episodes=2,
        baseline="none",
        normalise=False,
        num_tasks=1,
    )

    def one(key):
        return learner.estimator.estimate(LOGITS, (), (), key)[0].grad

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), NUM_SAMPLES)))


def distance(samples, expected):
    """Relative error of the mean."""
    difference = samples.mean(axis=0, dtype=np.float64) - expected
    return np.linalg.norm(difference) / np.linalg.norm(expected)


def test_emaml_is_unbiased():
    right, _ = exact_gradients()
    samples = sampled_gradients("emaml")
    assert standard_errors(samples, right) < 4
    assert standard_errors(samples, 1.05 * right) > 4
    assert distance(samples, right) < 0.01


@pytest.mark.slow
def test_naive_has_the_bias_of_fixed_actions():
    right, naive = exact_gradients()
    samples = sampled_gradients("naive")
    assert standard_errors(samples, naive) < 4
    assert distance(samples, right) > 0.2


@pytest.mark.slow
def test_dice_is_biased_less():
    right, _ = exact_gradients()
    assert distance(sampled_gradients("dice"), right) < 0.1
    assert standard_errors(sampled_gradients("dice"), right) > 4


def small(**settings):
    """Two steps in the plane."""
    environment, policy = tasks.navigation(), tasks.gaussian_policy(2, 2, hidden=(2,))
    sizes = {"horizon": 2, "num_episodes": 2, "discount": 0.9, "baseline": "none"}
    return environment, policy, sizes | settings


@pytest.mark.slow
def test_naive_without_normalisation_is_maml_on_policy_gradients():
    environment, policy, sizes = small()
    family = policy_gradient(environment, policy, **sizes)
    expected = maml(family, optax.sgd(0.1), num_steps=2, num_tasks=2)
    actual = maml_rl(
        environment, policy, optax.sgd(0.1), normalise=False, num_steps=2, num_tasks=2, **sizes
    )
    theta = actual.init(jax.random.key(0))
    found = [
        jax.jit(x.estimator.estimate)(theta, (), (), jax.random.key(1))[0]
        for x in (actual, expected)
    ]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_adaptation_raises_the_return_of_a_task():
    environment, policy, sizes = small(num_episodes=30, horizon=5)
    learner = maml_rl(environment, policy, optax.sgd(0.02), normalise=False, num_steps=5, **sizes)
    family = policy_gradient(environment, policy, **sizes)
    theta, task = learner.init(jax.random.key(0)), tasks.NavigationTask(jnp.array([0.5, 0.5]))

    def improvement(key):
        key_adapt, key_before, key_after = jax.random.split(key, 3)
        params = learner.adapt(theta, task, (), key_adapt)
        before = family.loss(theta, task, (), key_before)[1].episode_return
        return family.loss(params, task, (), key_after)[1].episode_return - before

    gains = jax.jit(jax.vmap(improvement))(jax.random.split(jax.random.key(1), 20))
    assert standard_errors(gains, 0.0) > 4
    assert gains.mean() > 0


def test_bad_settings_are_refused():
    environment, policy, sizes = small()
    with pytest.raises(ValueError, match="maml_rl: estimator='lvc' is unknown"):
        maml_rl(environment, policy, optax.sgd(0.1), estimator="lvc", **sizes)
    with pytest.raises(ValueError, match="maml_rl: num_steps must be at least 1"):
        maml_rl(environment, policy, optax.sgd(0.1), num_steps=0, **sizes)
