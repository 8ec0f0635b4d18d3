import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import tasks
from metaopt.algorithms import learned_policy_gradient, lpg_agent, lpg_rule
from tests.helpers import central_differences, ravel, relative_error, standard_errors

WIDTH, HIDDEN, ARMS, PULLS, RATE, WEIGHT = 3, 4, 3, 4, 0.6, 0.5


def rule():
    """A small network."""
    return lpg_rule(num_predictions=WIDTH, hidden=HIDDEN, embedding=2)


def an_episode(rewards):
    """Six steps, of which the third ends an episode."""
    return tasks.Trajectory(
        observations=jnp.zeros((6, 1)),
        actions=jnp.zeros(6, int),
        rewards=jnp.asarray(rewards, float),
        done=jnp.arange(6) == 2,
        active=jnp.ones(6, bool),
        final_observation=jnp.zeros(1),
    )


REWARDS = np.array([0.5, -1.0, 2.0, 0.3, 0.0, 1.0])
PROBS = np.array([0.2, 0.9, 0.4, 0.5, 0.7, 0.1])


def predictions():
    """Seven rows of probabilities."""
    logits = np.random.default_rng(0).normal(size=(7, WIDTH))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(theta, rewards):
    """The network, backwards through the episode."""

    def dense(layer, x):
        return x @ np.asarray(layer["w"]) + np.asarray(layer["b"])

    first, second = theta["embed"]
    embedded = dense(second, np.maximum(dense(first, predictions()), 0))[:, 0]
    state, rows = np.zeros(HIDDEN), []
    for t in reversed(range(6)):
        done = float(t == 2)
        state = state * (1 - done)
        x = np.array([rewards[t], done, PROBS[t], embedded[t], embedded[t + 1]])
        gates = sigmoid(dense(theta["gates"][0], np.concatenate([x, state])))
        update, reset = gates[:HIDDEN], gates[HIDDEN:]
        new = np.tanh(dense(theta["cell"][0], np.concatenate([x, reset * state])))
        state = (1 - update) * state + update * new
        rows.append(dense(theta["heads"][0], state))
    rows = np.array(rows[::-1])
    logits = rows[:, 1:]
    return rows[:, 0], logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_the_network_agrees_with_a_loop_backwards(x64):
    theta = rule().init(jax.random.key(0))
    apply = jax.jit(rule().apply)
    targets = apply(theta, an_episode(REWARDS), jnp.asarray(PROBS), jnp.asarray(predictions()))
    weights, log_probs = by_hand(theta, REWARDS)
    np.testing.assert_allclose(targets.weights, weights, rtol=1e-10)
    np.testing.assert_allclose(targets.predictions, log_probs, rtol=1e-10)

    changed = REWARDS + np.array([0, 0, 0, 0, 5.0, 0])
    other = apply(theta, an_episode(changed), jnp.asarray(PROBS), jnp.asarray(predictions()))
    same = np.isclose(other.weights, targets.weights)
    # What follows the end of an episode is not its future, nor is what came before.
    np.testing.assert_array_equal(same, [True, True, True, False, False, True])


def system():
    """Agents on bandits."""
    agent = lpg_agent(1, ARMS, num_predictions=WIDTH)
    environment = tasks.bandit(num_arms=ARMS)
    settings = {"horizon": 1, "num_episodes": PULLS, "prediction_weight": WEIGHT}
    made = learned_policy_gradient(environment, agent, rule(), optax.sgd(RATE), **settings)
    return made, agent, environment


def test_an_update_follows_the_targets(x64):
    made, agent, environment = system()
    theta, key = rule().init(jax.random.key(0)), jax.random.key(2)
    state = made.init(theta, (), jax.random.key(1))
    biases = jnp.asarray(np.random.default_rng(1).normal(size=ARMS + WIDTH))
    state = state._replace(params=({"w": state.params[0]["w"], "b": biases},))
    new, _ = jax.jit(made.step)(theta, state, (), key)

    policy = tasks.policy_of_logits(agent.init, lambda params, x: agent.apply(params, x)[0])
    play = tasks.rollout(environment, policy, horizon=1)
    key_play, _ = jax.random.split(jax.random.clone(key))
    keys = jax.random.split(key_play, PULLS)
    episodes = jax.jit(jax.vmap(play, (None, None, 0)))(state.params, state.task_params, keys)
    probs, y = (np.exp(x) / np.exp(x).sum() for x in (biases[:ARMS], biases[ARMS:]))
    expected, apply = np.zeros(ARMS + WIDTH), jax.jit(rule().apply)
    for i in range(PULLS):
        episode = jax.tree.map(lambda x: x[i], episodes)  # noqa: B023
        action = int(episode.actions[0])
        both = jnp.stack([y, y])
        weights, log_target = apply(theta, episode, jnp.asarray(probs[action])[None], both)
        expected[:ARMS] += float(weights[0]) * (np.eye(ARMS)[action] - probs)
        excess = np.log(y) - np.asarray(log_target[0])
        expected[ARMS:] -= WEIGHT * y * (excess - y @ excess)
    moved = np.asarray(new.params[0]["b"] - biases)
    np.testing.assert_allclose(moved, RATE * expected / PULLS, rtol=1e-6)


@pytest.mark.slow
def test_the_derivative_of_an_update_by_the_rule_agrees_with_differences(x64):
    made, _, _ = system()
    theta = rule().init(jax.random.key(0))
    state = made.init(theta, (), jax.random.key(1))

    def norm(theta):
        new, _ = made.step(theta, state, (), jax.random.key(2))
        return jnp.sum(new.params[0]["b"] ** 2)

    expected = central_differences(norm, theta)
    assert relative_error(ravel(jax.jit(jax.grad(norm))(theta)), expected) < 1e-6


@pytest.mark.slow
def test_the_meta_gradient_is_that_of_the_return_after_the_update():
    """Two pulls of two arms without noise: all four pairs, as likely as each other at first."""
    means = jnp.array([1.0, -0.5])
    environment = tasks.bandit(num_arms=2, noise=0.0)
    environment = environment._replace(sample=lambda key: tasks.BanditTask(means))
    made = learned_policy_gradient(
        environment,
        lpg_agent(1, 2, num_predictions=WIDTH),
        rule(),
        optax.sgd(RATE),
        horizon=1,
        num_episodes=2,
        entropy=0.0,
        prediction_entropy=0.0,
        weight_penalty=0.0,
        prediction_penalty=0.0,
    )
    theta = rule().init(jax.random.key(0))
    y = jnp.full((2, WIDTH), 1 / WIDTH)

    def weight(theta, arm):
        one = jnp.ones(1, bool)
        episode = tasks.Trajectory(
            jnp.zeros((1, 1)), jnp.array([arm]), means[arm][None], one, one, jnp.zeros(1)
        )
        return rule().apply(theta, episode, jnp.array([0.5]), y).weights[0]

    def expected_loss(theta):
        moves = [RATE * weight(theta, a) / 2 * (jax.nn.one_hot(a, 2) - 0.5) for a in range(2)]
        return -sum(jax.nn.softmax(x + y) @ means for x in moves for y in moves) / 4

    def loss(theta, key):
        key_init, key_step = jax.random.split(key)
        state = made.init(theta, (), key_init)
        return made.step(theta, state, (), key_step)[1].loss

    keys = jax.random.split(jax.random.key(1), 4000)
    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(theta, keys)["heads"][0]["w"][..., 0]
    exact = np.asarray(jax.grad(expected_loss)(theta)["heads"][0]["w"][:, 0])
    assert standard_errors(grads, exact) < 4
    assert standard_errors(grads, 2 * exact) > 4


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="lpg_agent: num_predictions=0"):
        lpg_agent(1, 2, num_predictions=0)
    with pytest.raises(ValueError, match="lpg_rule: hidden=0"):
        lpg_rule(hidden=0)
    with pytest.raises(ValueError, match="baseline='mean' has no other episode"):
        learned_policy_gradient(
            tasks.bandit(num_arms=2),
            lpg_agent(1, 2),
            lpg_rule(),
            optax.sgd(0.1),
            horizon=1,
            num_episodes=1,
        )
