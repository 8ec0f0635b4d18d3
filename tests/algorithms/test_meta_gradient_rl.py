import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, estimators, tasks
from metaopt.algorithms import ActorCritic, meta_gradient_rl, return_settings, return_theta
from tests.helpers import relative_error

STATES, HORIZON, EPISODES, RATE, WEIGHT = 3, 4, 3, 0.4, 0.7
POLICY = jnp.array([[0.3, -0.1], [0.0, 0.2], [-0.4, 0.1]])
VALUES = jnp.array([0.2, -0.3, 0.5])
OUTER = (0.95, 0.9)


def actor():
    """Logits for each state."""
    return tasks.policy_of_logits(lambda key: POLICY, lambda params, x: x @ params)


def problem():
    """Tables for policy and values on a random walk."""
    critic = tasks.ValueFunction(lambda key: VALUES, lambda params, x: params @ x)
    return meta_gradient_rl(
        tasks.random_walk(num_states=STATES),
        actor(),
        critic,
        horizon=HORIZON,
        num_episodes=EPISODES,
        outer_discount=OUTER[0],
        outer_trace=OUTER[1],
        value_weight=WEIGHT,
    )


def played(policy, key):
    """The episodes that a loss with this key sees, as state indices and the rest."""
    play = tasks.rollout(tasks.random_walk(num_states=STATES), actor(), horizon=HORIZON)
    keys = jax.random.split(key, EPISODES)
    episodes = jax.jit(jax.vmap(play, (None, None, 0)))(policy, (), keys)
    observations = np.concatenate(
        [episodes.observations, episodes.final_observation[:, None]], axis=1
    )
    return observations, jax.tree.map(np.asarray, episodes)


def value_and_gradients(policy, values, discount, trace, episodes):
    """Of the agent's loss, step by step; returns are constants."""
    observations, rest = episodes
    loss, of_policy, of_values = 0.0, np.zeros((STATES, 2)), np.zeros(STATES)
    for e in range(EPISODES):
        following = observations[e, HORIZON] @ values
        for t in reversed(range(HORIZON)):
            after = observations[e, t + 1] @ values
            goes_on = discount * (1 - rest.done[e, t])
            mixed = (1 - trace) * after + trace * following
            following = rest.rewards[e, t] + goes_on * mixed
            if not rest.active[e, t]:
                continue
            seen = observations[e, t]
            logits = seen @ policy
            probs = np.exp(logits) / np.exp(logits).sum()
            action, error = rest.actions[e, t], seen @ values - following
            loss += 0.5 * WEIGHT * error**2 + np.log(probs[action]) * error
            of_values += WEIGHT * error * seen
            of_policy += error * np.outer(seen, np.eye(2)[action] - probs)
    count = rest.active.sum()
    return loss / count, of_policy / count, of_values / count


@pytest.mark.compiles
def test_one_step_agrees_with_numpy_in_update_loss_and_meta_gradient(x64):
    system = core.bilevel_training(problem(), optax.sgd(RATE))
    theta, key = return_theta(0.7, 0.4), jax.random.key(1)
    state = system.init(theta, (), jax.random.key(0))

    @jax.jit
    def step(theta, key):
        def loss(theta):
            new, info = system.step(theta, state, (), key)
            return info.loss, new.params

        return jax.value_and_grad(loss, has_aux=True)(theta)

    (loss, params), grad = step(theta, key)
    key_inner, key_outer = jax.random.split(jax.random.clone(key))
    inner = played(POLICY, key_inner)
    outer = played(params.policy, key_outer)

    def outer_loss(logits):
        settings = 1 / (1 + np.exp(-logits))
        old = (np.asarray(POLICY, np.float64), np.asarray(VALUES, np.float64))
        _, of_policy, of_values = value_and_gradients(*old, *settings, inner)
        new = (old[0] - RATE * of_policy, old[1] - RATE * of_values)
        value = value_and_gradients(*new, *OUTER, outer)
        return value, new

    logits = np.log(np.array([0.7, 0.4]) / np.array([0.3, 0.6]))
    (value, of_policy, of_values), new = outer_loss(logits)
    np.testing.assert_allclose(params.policy, new[0], rtol=1e-6)
    np.testing.assert_allclose(params.value, new[1], rtol=1e-6)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    # The outer gradient takes returns for constants, so only the update is differentiated.
    expected = []
    for basis in 1e-5 * np.eye(2):
        high, low = outer_loss(logits + basis)[1], outer_loss(logits - basis)[1]
        moves = [(h - x) / 2e-5 for h, x in zip(high, low, strict=True)]
        expected.append(np.sum(of_policy * moves[0]) + np.sum(of_values * moves[1]))
    assert relative_error(list(grad), expected) < 1e-6


def test_settings_survive_the_way_to_logits_and_back():
    np.testing.assert_allclose(return_settings(return_theta(0.7, 0.5)), [0.7, 0.5], rtol=1e-6)


@pytest.mark.slow
def test_the_discount_grows_where_the_outer_return_has_none():
    system = core.bilevel_training(problem(), optax.sgd(RATE))
    estimator = estimators.truncated_backprop(system, truncation=1, horizon=None, num_tasks=64)
    theta = return_theta(0.5, 0.5)
    state = estimator.init(theta, (), jax.random.key(0))
    assert isinstance(state.episode.state.inner.params, ActorCritic)
    run = jax.jit(estimator.estimate)
    for index in range(20):
        estimate, state = run(theta, state, (), jax.random.fold_in(jax.random.key(1), index))
        theta = jax.tree.map(lambda x, g: x - 2.0 * g, theta, estimate.grad)
    assert return_settings(theta)[0] > 0.5


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="meta_gradient_rl: num_episodes=0 is below 1"):
        meta_gradient_rl(
            tasks.random_walk(),
            tasks.uniform_policy(2),
            tasks.value_function(10),
            horizon=3,
            num_episodes=0,
        )
