import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import algorithms, tasks
from metaopt.algorithms import DiscoInputs, DiscoOutputs, DiscoValues
from metaopt.learned._recurrent import LSTMState
from tests.helpers import ravel

EPISODES, STEPS, PREDICTIONS, HIDDEN, LIFETIME = 2, 3, 2, 2, 3
DONE = np.array([[False, False, True], [False, True, False]])
ACTIVE = np.array([[True, True, True], [True, True, False]])


def rule():
    """A small network."""
    return algorithms.disco_rule(
        num_predictions=PREDICTIONS, hidden=HIDDEN, lifetime=LIFETIME, embedding=2, channels=3
    )


def inputs(num_actions=3):
    """Two episodes, the second shorter."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), float)

    def outputs():
        lead = (EPISODES, STEPS + 1)
        by_action = [normal(*lead, num_actions, n) for n in (PREDICTIONS, num_actions, 5)]
        return DiscoOutputs(normal(*lead, num_actions), normal(*lead, PREDICTIONS), *by_action)

    def per_step(*more):
        return normal(EPISODES, STEPS, *more)

    def per_observation(*more):
        return normal(EPISODES, STEPS + 1, *more)

    values = DiscoValues(
        value=per_observation(),
        action_value=per_observation(num_actions),
        target=per_step(),
        advantage=per_step(),
        normalised_advantage=per_step(),
        action_advantage=per_observation(num_actions),
        normalised_action_advantage=per_observation(num_actions),
    )
    episodes = tasks.Trajectory(
        observations=jnp.zeros((EPISODES, STEPS, 1)),
        actions=jnp.asarray(rng.integers(num_actions, size=(EPISODES, STEPS))),
        rewards=per_step(),
        done=jnp.asarray(DONE),
        active=jnp.asarray(ACTIVE),
        final_observation=jnp.zeros((EPISODES, 1)),
    )
    return DiscoInputs(episodes, outputs(), outputs(), per_step(num_actions), values)


def memory():
    """In the middle of a lifetime."""
    return LSTMState(jnp.array([0.3, -0.2, 0.5], float), jnp.array([0.1, 0.4, -0.6], float))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def slog(x):
    return np.sign(x) * np.log1p(np.abs(x))


def dense(layer, x):
    return x @ np.asarray(layer["w"]) + np.asarray(layer["b"])


def number(layers, logits):
    """A distribution as a number."""
    return dense(layers[1], np.maximum(dense(layers[0], softmax(logits)), 0))[0]


def pooled(layers, rows):
    """Rows of actions, each with their mean."""
    for layer in layers:
        mean = np.mean(rows, axis=0)
        rows = [np.maximum(dense(layer, np.concatenate([row, mean])), 0) for row in rows]
    return rows


def cell(layer, state, x):
    hidden, kept = state
    i, g, f, o = np.split(dense(layer, np.concatenate([x, hidden])), 4)
    i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f + 1, o))
    kept = f * kept + i * np.tanh(g)
    return o * np.tanh(kept), kept


def features(theta, x, e, t):
    """What is read of one step, one number after the other."""
    a, now, then = int(x.episodes.actions[e, t]), (e, t), (e, t + 1)
    pi, mu = softmax(x.outputs.policy[now]), softmax(x.behaviour[now])
    after, average_pi = softmax(x.outputs.policy[then]), softmax(x.average.policy[now])
    both = (x.outputs, x.average)
    z_now = [np.array([number(theta["z"], row) for row in o.z[now]]) for o in both]
    z_then = [np.array([number(theta["z"], row) for row in o.z[then]]) for o in both]
    rows = []
    for b in range(len(pi)):
        of_values = [x.values.action_value, x.values.action_advantage]
        scaled = x.values.normalised_action_advantage[now][b]
        seen = [pi[b], mu[b], average_pi[b], z_now[0][b], z_now[1][b]]
        seen += [*(slog(v[now][b]) for v in of_values), scaled, float(a == b)]
        rows.append(np.array(seen, float))
    embedded = pooled(theta["actions"], rows)
    step = [pi[a], mu[a], average_pi[a], slog(x.episodes.rewards[now]), 1 - float(DONE[now])]
    step += [slog(x.values.value[now]), slog(x.values.value[then])]
    step += [slog(x.values.advantage[now]), x.values.normalised_advantage[now]]
    for o in both:
        step += [number(theta["y"], o.y[now]), number(theta["y"], o.y[then])]
    step += [z[a] for z in z_now]
    for first, second in zip(z_now, z_then, strict=True):
        step += [pi @ first, after @ second]
    for first, second in zip(z_now, z_then, strict=True):
        step += [first.max(), second.max()]
    step = np.array(step, float)
    return np.concatenate([step, np.mean(embedded, axis=0), embedded[a]]), embedded


def by_hand(theta, remembered, x):
    """Targets, and what is remembered."""
    gate = dense(theta["gate"], remembered[0])
    policy, y, z, told = {}, {}, {}, []
    for e in range(EPISODES):
        state = (np.zeros(HIDDEN), np.zeros(HIDDEN))
        for t in reversed(range(STEPS)):
            if DONE[e, t]:
                state = (np.zeros(HIDDEN), np.zeros(HIDDEN))
            step, embedded = features(theta["reader"], x, e, t)
            state = cell(theta["episode"], state, step)
            h = state[0] * gate
            y[e, t], z[e, t] = dense(theta["y"], h), dense(theta["z"], h)
            rows = pooled(theta["actions"], [np.concatenate([h, row]) for row in embedded])
            policy[e, t] = [dense(theta["policy"], row)[0] for row in rows]
            seen, _ = features(theta["lifetime_reader"], x, e, t)
            summary = dense(theta["summary"], h)[0]
            again = number(theta["lifetime_reader"]["y"], y[e, t])
            if ACTIVE[e, t]:
                told.append(dense(theta["lifetime_inputs"], np.append(seen, [summary, again])))
    new = cell(theta["lifetime"], remembered, np.mean(told, axis=0))

    def table(of):
        return np.array([[of[e, t] for t in range(STEPS)] for e in range(EPISODES)])

    return (table(policy), table(y), table(z)), new


def test_the_network_agrees_with_numpy_and_no_order_of_actions_matters(x64):
    theta, x = rule().init(jax.random.key(0)), inputs()
    apply = jax.jit(rule().apply)
    targets, new = apply(theta, memory(), x)
    expected, remembered = by_hand(theta, [np.asarray(m) for m in memory()], jax.device_get(x))
    for ours, theirs in zip((*targets, *new), (*expected, *remembered), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    order = jnp.array([2, 0, 1])
    place = jnp.argsort(order)

    def renamed(outputs):
        # What is not read may stay.
        return outputs._replace(policy=outputs.policy[..., order], z=outputs.z[:, :, order])

    values = {
        name: getattr(x.values, name)[..., order]
        for name in ("action_value", "action_advantage", "normalised_action_advantage")
    }
    other = DiscoInputs(
        x.episodes._replace(actions=place[x.episodes.actions]),
        renamed(x.outputs),
        renamed(x.average),
        x.behaviour[..., order],
        x.values._replace(**values),
    )
    other_targets, other_new = apply(theta, memory(), other)
    np.testing.assert_allclose(other_targets.policy, targets.policy[..., order], rtol=1e-9)
    np.testing.assert_allclose(ravel(other_targets[1:]), ravel(targets[1:]), rtol=1e-9)
    np.testing.assert_allclose(ravel(other_new), ravel(new), rtol=1e-9)


@pytest.mark.parametrize("num_actions", [2, 3, 18])
def test_any_number_of_actions_has_the_same_theta_in_closed_form(num_actions):
    theta = jax.eval_shape(rule().init, jax.random.key(0))
    targets, new = jax.eval_shape(rule().apply, theta, memory(), inputs(num_actions))
    assert targets.policy.shape == (EPISODES, STEPS, num_actions)
    assert targets.y.shape == targets.z.shape == (EPISODES, STEPS, PREDICTIONS)
    assert new.hidden.shape == new.cell.shape == (LIFETIME,)


def test_derivatives_pass_through_y_and_z_alone(x64):
    theta, x = rule().init(jax.random.key(0)), inputs()

    def total(floats):
        outputs, average, behaviour, values = floats
        targets, new = rule().apply(
            theta, memory(), DiscoInputs(x.episodes, outputs, average, behaviour, values)
        )
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((targets, new)))

    floats = (x.outputs, x.average, x.behaviour, x.values)
    outputs, average, behaviour, values = jax.jit(jax.grad(total))(floats)
    for grads in (outputs, average):
        assert np.abs(grads.y).max() > 1e-6
        assert np.abs(grads.z).max() > 1e-6
        for constant in (grads.policy, grads.next_policy, grads.value_bins):
            np.testing.assert_array_equal(constant, 0)
    np.testing.assert_array_equal(ravel((behaviour, values)), 0)


def test_what_follows_an_end_is_not_seen_by_hand(x64):
    theta, x = rule().init(jax.random.key(0)), inputs()

    def targets_of(x):
        (policy, y, z), _ = rule().apply(theta, memory(), x)
        return jnp.concatenate([policy, y, z], axis=-1)

    run = jax.jit(targets_of)
    before = run(x)

    def changed_at(e, t):
        rewards = x.episodes.rewards.at[e, t].add(1.0)
        after = run(x._replace(episodes=x.episodes._replace(rewards=rewards)))
        return np.any(np.asarray(before != after), axis=-1)

    np.testing.assert_array_equal(changed_at(0, 2), [[True, True, True], [False] * 3])
    # The second episode ended before.
    np.testing.assert_array_equal(changed_at(1, 2), [[False] * 3, [False, False, True]])
    np.testing.assert_array_equal(changed_at(1, 0), [[False] * 3, [True, False, False]])


def test_a_lifetime_starts_with_an_open_gate_at_first():
    theta = rule().init(jax.random.key(0))
    start = rule().start()
    np.testing.assert_array_equal(ravel(start), 0)
    np.testing.assert_array_equal(dense(theta["gate"], np.asarray(start.hidden)), 1)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="disco_rule: lifetime=0"):
        algorithms.disco_rule(lifetime=0)
