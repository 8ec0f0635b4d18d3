import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import algorithms, optimizers, tasks, tree, unroll
from metaopt.algorithms import DiscoAgent, DiscoOutputs, DiscoRule, DiscoTargets
from metaopt.algorithms._disco_judge import critic_judge, player
from tests.helpers import central_differences, ravel, relative_error

EPISODES, PREDICTIONS, BINS, RATE = 3, 2, 5, 0.7
DISCOUNT, TRACE, WEIGHT, LARGEST = 0.9, 0.6, 0.4, 2.0


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def board():
    """Two actions, of which the second ends the episode."""
    return tasks.catch(rows=3, columns=2)


def table() -> DiscoAgent:
    """An agent that does not look: its parameters are its outputs."""

    def init(key):
        shapes = DiscoOutputs((3,), (PREDICTIONS,), (3, PREDICTIONS), (3, 3), (3, BINS))
        keys = jax.random.split(key, len(shapes))
        return DiscoOutputs(*(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)))

    return DiscoAgent(init, lambda params, observation: params)


def constants() -> DiscoRule:
    """Its theta are the targets of every step."""

    def apply(theta, memory, inputs):
        lead = inputs.episodes.rewards.shape
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*lead, *x.shape)), theta), memory

    def init(key):
        keys = jax.random.split(key, 3)
        sizes = (3, PREDICTIONS, PREDICTIONS)
        return DiscoTargets(*(jax.random.normal(k, (n,)) for k, n in zip(keys, sizes, strict=True)))

    return DiscoRule(init, lambda: (), apply)


def of_table(**settings):
    """The table's lifetime, with a linear critic."""
    return algorithms.disco_rl(
        board(),
        table(),
        constants(),
        optax.sgd(RATE),
        tasks.value_function(6),
        optax.sgd(0.1),
        horizon=2,
        num_episodes=EPISODES,
        discount=DISCOUNT,
        trace=TRACE,
        value_weight=WEIGHT,
        max_value=LARGEST,
        **settings,
    )


def value_targets(params, episode):
    """Distributions over the grid for both actions of an episode."""
    grid = np.linspace(-LARGEST, LARGEST, BINS)
    mean = softmax(params.value_bins) @ grid
    root = (np.sqrt(1 + 4e-3 * (np.abs(mean) + 1 + 1e-3)) - 1) / 2e-3
    q = np.sign(mean) * (root**2 - 1)
    last = float(episode.rewards[1])
    value = softmax(params.policy) @ q
    first = DISCOUNT * (value + TRACE * (last - q[int(episode.actions[1])]))
    rows = []
    for target in (first, last):
        squashed = np.sign(target) * (np.sqrt(abs(target) + 1) - 1) + 1e-3 * target
        place = np.clip((squashed / LARGEST + 1) * (BINS - 1) / 2, 0, BINS - 1)
        low = min(int(place), BINS - 2)
        row = np.zeros(BINS)
        row[low], row[low + 1] = low + 1 - place, place - low
        rows.append(row)
    return rows


def test_an_update_and_its_derivative_by_theta_are_those_of_a_closed_form(x64):
    made, key = of_table(), jax.random.key(2)
    theta = constants().init(jax.random.key(0))
    state = made.init(theta, (), jax.random.key(1))

    def updated(theta):
        new, _ = made.step(theta, state, (), jax.random.clone(key))
        return new.params, new.params

    slopes, new = jax.jit(jax.jacobian(updated, has_aux=True))(theta)
    key_play, _ = jax.random.split(key)
    play = player(board(), table(), horizon=2)
    episodes, _ = jax.jit(play, static_argnums=3)(state.params, (), key_play, EPISODES)

    params = jax.device_get(state.params)
    pi, y, z, p, q = map(softmax, params)
    targets = [softmax(np.asarray(x)) for x in theta]
    moves = DiscoOutputs(pi - targets[0], y - targets[1], 0 * z, 0 * p, 0 * q)
    count = 2 * EPISODES
    for e in range(EPISODES):
        episode = jax.tree.map(lambda x: np.asarray(x)[e], episodes)  # noqa: B023
        rows = value_targets(params, episode)
        for t, action in enumerate(episode.actions):
            moves.z[action] += (z[action] - targets[2]) / count
            moves.value_bins[action] += WEIGHT * (q[action] - rows[t]) / count
            if t == 0:  # After the last action there is no policy.
                moves.next_policy[action] += (p[action] - pi) / count
    for after, before, move in zip(new, params, moves, strict=True):
        np.testing.assert_allclose(after - before, -RATE * move, rtol=1e-8, atol=1e-12)

    # The losses of p and q have no theta, every other output its own.
    for name, target in (("policy", targets[0]), ("y", targets[1])):
        expected = RATE * (np.diag(target) - np.outer(target, target))
        slope = getattr(getattr(slopes, name), name)
        np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(slopes.z.z).max() > 0.01
    np.testing.assert_array_equal(ravel((slopes.next_policy, slopes.value_bins)), 0)
    others = (slopes.policy[1:], slopes.y[::2], slopes.z[:2])
    np.testing.assert_array_equal(ravel(others), 0)


def test_an_agent_is_judged_as_in_numpy(x64):
    """One episode per draw: advantages on a scale that they set themselves."""
    agent, critic, environment = table(), tasks.value_function(6), board()
    play = player(environment, agent, horizon=2)
    judge = critic_judge(
        play,
        agent,
        critic,
        optax.sgd(0.1),
        num_episodes=4,
        discount=DISCOUNT,
        trace=TRACE,
        entropy_weight=0.3,
        prediction_entropy=0.2,
    )
    params, state = agent.init(jax.random.key(0)), judge.init(jax.random.key(1))
    played = jax.jit(play, static_argnums=3)(params, (), jax.random.key(2), 2)
    key = jax.random.key(3)
    run = jax.jit(jax.value_and_grad(judge.step, has_aux=True))
    (loss, new), grads = run(params, state, (), played, key)
    new_played = jax.jit(play, static_argnums=3)(params, (), jax.random.clone(key), 4)

    def returns_and_values(layer, episodes, observations):
        values = np.asarray(observations) @ np.asarray(layer["w"])[:, 0] + float(layer["b"][0])
        last = np.asarray(episodes.rewards)[:, 1]
        first = DISCOUNT * ((1 - TRACE) * values[:, 1] + TRACE * last)
        return np.stack([first, last], axis=1), values[:, :2]

    before, after = state.params[0], new.params[0]
    returns, values = returns_and_values(before, *played)
    slope = (values - returns) / returns.size
    features = np.asarray(played[1])[:, :2]
    expected = np.einsum("et,eti->i", slope, features)
    np.testing.assert_allclose(after["w"][:, 0], before["w"][:, 0] - 0.1 * expected, rtol=1e-9)
    np.testing.assert_allclose(after["b"], -0.1 * slope.sum(), rtol=1e-9)

    returns, values = returns_and_values(after, *new_played)
    advantages = returns - values
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
    actions = np.asarray(new_played[0].actions)
    pi, y, z = (softmax(np.asarray(x)) for x in params[:3])
    entropies = [-np.sum(x * np.log(x), axis=-1) for x in (pi, y, z)]
    bonus = 0.3 * entropies[0] + 0.2 * (entropies[1] + np.mean(entropies[2][actions]))
    value = DISCOUNT * np.mean(new_played[0].rewards[:, 1])
    np.testing.assert_allclose(loss, -value - bonus, rtol=1e-9)
    gain = np.mean(advantages[..., None] * (np.eye(3)[actions] - pi), axis=(0, 1))
    of_entropy = -pi * (np.log(pi) + entropies[0])
    np.testing.assert_allclose(grads.policy, -gain - 0.3 * of_entropy, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(ravel(grads[3:]), 0)


def small(inner_opt, **settings):
    """A learned rule and a network that looks."""
    rule = algorithms.disco_rule(
        num_predictions=PREDICTIONS, hidden=2, lifetime=2, embedding=2, channels=2
    )
    agent = algorithms.disco_agent(
        6, 3, num_predictions=PREDICTIONS, num_bins=3, hidden=(2,), model=2, activation="tanh"
    )
    made = algorithms.disco_rl(
        board(),
        agent,
        rule,
        inner_opt,
        tasks.value_function(6),
        optax.sgd(0.1),
        horizon=2,
        num_episodes=2,
        max_value=LARGEST,
        **settings,
    )
    return made, rule.init(jax.random.key(0))


def test_the_derivative_of_an_update_by_the_rule_agrees_with_differences(x64):
    made, theta = small(optax.sgd(0.5))
    # Biases of zero leave rectifiers of dead inputs on their kink.
    theta = optax.tree.add_scale(theta, 0.05, tree.sample_normal(theta, jax.random.key(9)))
    state = made.init(theta, (), jax.random.key(1))
    state = state._replace(memory=jax.tree.map(lambda x: x + 0.3, state.memory))

    def norm(theta):
        new, _ = made.step(theta, state, (), jax.random.key(2))
        moved = optax.tree.sub(new.params, state.params)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves((moved, new.memory)))

    expected = central_differences(norm, theta)
    assert relative_error(ravel(jax.jit(jax.grad(norm))(theta)), expected) < 1e-6


def test_mixed_mode_over_a_population_is_a_loop_over_agents(x64):
    made, theta = small(optimizers.disco_adam(0.01))
    keys = jax.random.split(jax.random.key(1), 2)
    run_keys = jax.random.key_data(jax.random.split(jax.random.key(2), 2))
    states = jax.vmap(lambda key: made.init(theta, (), key))(keys)

    def loss(theta, state, key_data, gradient):
        run = unroll.unroll(made, num_steps=2, gradient=gradient)
        return jnp.mean(run(theta, state, (), jax.random.wrap_key_data(key_data))[1].loss)

    def population(theta):
        losses = jax.vmap(loss, (None, 0, 0, None))(theta, states, run_keys, "mixed")
        return jnp.mean(losses)

    together = jax.jit(jax.grad(population))(theta)
    alone = jax.jit(jax.grad(loss), static_argnums=3)
    singles = [
        alone(theta, jax.tree.map(lambda x: x[i], states), run_keys[i], "reverse")  # noqa: B023
        for i in range(2)
    ]
    expected = optax.tree.scale(0.5, optax.tree.add(*singles))
    assert relative_error(together, expected) < 1e-9


def towards_advantages(step) -> DiscoRule:
    """A policy gradient as a target: the action's logit moved by its advantage."""

    def apply(theta, memory, inputs):
        actions, outputs = inputs.episodes.actions, inputs.outputs
        moved = step * inputs.values.normalised_advantage[..., None]
        policy = outputs.policy[:, :-1] + moved * jax.nn.one_hot(actions, 3)
        z = jnp.take_along_axis(outputs.z[:, :-1], actions[..., None, None], axis=2)[:, :, 0]
        return jax.lax.stop_gradient(DiscoTargets(policy, outputs.y[:, :-1], z)), memory

    return DiscoRule(lambda key: (), lambda: (), apply)


def mean_returns(rule: DiscoRule, num_steps: int):
    """Of an agent on a 5 x 5 board before and after its lifetime."""
    environment = tasks.catch()
    agent = algorithms.disco_agent(25, 3, num_predictions=2, num_bins=21, hidden=(32,), model=16)
    system = algorithms.disco_rl(
        environment,
        agent,
        rule,
        optimizers.disco_adam(0.01),
        tasks.value_function(25),
        optax.sgd(0.1),
        horizon=4,
        num_episodes=16,
        max_value=2.0,
    )

    def whole(key):
        key_init, key_steps, key_test = jax.random.split(key, 3)
        state = system.init((), (), key_init)
        last, _ = unroll.unroll(system, num_steps=num_steps)((), state, (), key_steps)
        play = player(environment, agent, horizon=4)
        keys = jax.random.split(key_test)
        before, after = (
            jnp.mean(jnp.sum(play(s.params, (), k, 500)[0].rewards, axis=1))
            for s, k in zip((state, last), keys, strict=True)
        )
        return before, after

    return jax.jit(whole)(jax.random.key(0))


def test_an_agent_with_written_targets_learns_to_catch():
    before, after = mean_returns(towards_advantages(1.0), 150)
    assert after > before + 0.6


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="disco_rl: num_episodes=0"):
        algorithms.disco_rl(
            board(), table(), constants(), optax.sgd(0.1), tasks.value_function(6), optax.sgd(0.1),
            horizon=2, num_episodes=0,
        )  # fmt: skip
