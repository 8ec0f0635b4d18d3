"""The network of DiscoRL: what an agent should have said, from what happened to it.

    x_t = (π, μ, π̄ of a_t; r_t; γ_t; v, A; y and z at t and t + 1, of the agent and its average)
    h_t = LSTM(x_t, h_{t+1}) ∘ gate(H),    ŷ_t, ẑ_t = heads(h_t),    π̂_t = head(h_t, e_{t,a})
    H ← LSTM(mean over steps of (x_t, h_t, ŷ_t), H)    once per update: the lifetime

Features e of single actions pass through layers that see one action and the mean over all, so that
any number of actions has the same theta and their order does not matter. Rewards and values enter
as sign(x) log(1 + |x|). Derivatives pass through y and z alone: policies, values and advantages are
constants. Oh et al. 2025, doi:10.1038/s41586-025-09761-x, with inputs and layers as released.
Differs: the gate of a lifetime starts open, with bias 1, instead of shut.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt import tree
from metaopt.algorithms._categorical import of_actions
from metaopt.algorithms._disco_agent import DiscoOutputs
from metaopt.algorithms._disco_values import DiscoValues
from metaopt.core import Theta, checked
from metaopt.data._check import at_least_one
from metaopt.learned._recurrent import LSTMState, dense, dense_init, lstm, lstm_init
from metaopt.tasks import Trajectory

# Features of a step, without those pooled over actions, and of an action.
_PER_STEP, _PER_ACTION, _POOLED = 23, 9, 2


class DiscoInputs(NamedTuple):
    """What a rule reads: episodes as the agent sees them now.

    Attributes:
        episodes: a batch of them.
        outputs: of the agent, at every observation and the final one.
        average: of the moving average of its parameters.
        behaviour: logits that the actions were drawn from.
        values: see `DiscoValues`.
    """

    episodes: Trajectory
    outputs: DiscoOutputs
    average: DiscoOutputs
    behaviour: Float[Array, "episodes T actions"]
    values: DiscoValues


class DiscoTargets(NamedTuple):
    """What an agent should have said, as logits.

    Attributes:
        policy: π̂.
        y: ŷ.
        z: ẑ, of the action that was taken.
    """

    policy: Float[Array, "episodes T actions"]
    y: Float[Array, "episodes T predictions"]
    z: Float[Array, "episodes T predictions"]


class DiscoRule(NamedTuple):
    """A rule, learned or written by hand.

    Attributes:
        init: `(key) -> theta`.
        start: `() -> memory`, at the beginning of a lifetime.
        apply: `(theta, memory, inputs) -> (DiscoTargets, memory)`, once per update of an agent.
    """

    init: Callable[[PRNGKeyArray], Theta]
    start: Callable[[], Any]
    apply: Callable[[Theta, Any, DiscoInputs], tuple[DiscoTargets, Any]]


@checked
def disco_rule(
    *,
    num_predictions: int = 16,
    hidden: int = 32,
    lifetime: int = 16,
    embedding: int = 16,
    channels: int = 16,
) -> DiscoRule:
    """The network of a rule; it does not depend on the number of actions.

    Args:
        num_predictions: length of y and of z; 600 in the paper. Static.
        hidden: width of the LSTM over episodes; 256 in the paper. Static.
        lifetime: width of the LSTM over updates; 128 in the paper. Static.
        embedding: hidden width of the maps from y and z to a number. Static.
        channels: hidden width of the layers over actions. Static.

    Returns:
        A rule.

    Raises:
        ValueError: if a size is below 1.
    """
    sizes = {"num_predictions": num_predictions, "hidden": hidden, "lifetime": lifetime}
    at_least_one("disco_rule", **sizes, embedding=embedding, channels=channels)
    num_inputs = _PER_STEP + 2 * _POOLED

    def reader_init(key):
        keys = jax.random.split(key, 3)
        number = (num_predictions, embedding, 1)
        return {
            "y": _layers_init(keys[0], number),
            "z": _layers_init(keys[1], number),
            "actions": _layers_init(keys[2], (_PER_ACTION, channels, _POOLED), pooled=True),
        }

    def init(key):
        keys = jax.random.split(key, 11)
        gate = _scaled_init(keys[2], lifetime, hidden, 1.0)
        return {
            "reader": reader_init(keys[0]),
            "episode": lstm_init(keys[1], num_inputs, hidden),
            "gate": gate | {"b": jnp.ones_like(gate["b"])},
            "y": _scaled_init(keys[3], hidden, num_predictions, 0.3),
            "z": _scaled_init(keys[4], hidden, num_predictions, 0.3),
            "actions": _layers_init(keys[5], (hidden + _POOLED, channels), pooled=True),
            "policy": _scaled_init(keys[6], channels, 1, 0.3),
            "summary": _scaled_init(keys[7], hidden, 1, 0.3),
            "lifetime_reader": reader_init(keys[8]),
            "lifetime_inputs": dense_init(keys[9], num_inputs + 2, embedding),
            "lifetime": lstm_init(keys[10], embedding, lifetime),
        }

    def start():
        return LSTMState(jnp.zeros(lifetime, float), jnp.zeros(lifetime, float))

    def apply(theta, memory, inputs):
        steps, by_action = _read(theta["reader"], inputs)
        states = _backwards(theta["episode"], steps, inputs.episodes.done, hidden)
        states = states * jnp.broadcast_to(dense(theta["gate"], memory.hidden), states.shape)
        wide = jnp.broadcast_to(states[:, :, None], (*by_action.shape[:3], hidden))
        pooled = _pooling(theta["actions"], jnp.concatenate([wide, by_action], axis=-1))
        targets = DiscoTargets(
            policy=dense(theta["policy"], pooled)[..., 0],
            y=dense(theta["y"], states),
            z=dense(theta["z"], states),
        )
        reader = theta["lifetime_reader"]
        told = [dense(theta["summary"], states), _layers(reader["y"], jax.nn.softmax(targets.y))]
        seen = jnp.concatenate([_read(reader, inputs)[0], *told], axis=-1)
        weights = inputs.episodes.active / jnp.sum(inputs.episodes.active)
        mean = jnp.einsum("bt,bti->i", weights, dense(theta["lifetime_inputs"], seen))
        _, new = lstm(theta["lifetime"], memory, mean)
        return targets, tree.cast_like(new, memory)

    return DiscoRule(init, start, apply)


def _read(theta, inputs: DiscoInputs):
    """The features of every step, and those of every action of every step."""
    outputs, average, values = inputs.outputs, inputs.average, jax.lax.stop_gradient(inputs.values)
    actions, rewards = inputs.episodes.actions, inputs.episodes.rewards
    logits = (outputs.policy[:, :-1], inputs.behaviour, average.policy[:, :-1])
    policies = [jax.nn.softmax(jax.lax.stop_gradient(x))[..., None] for x in logits]
    weights = jax.nn.softmax(jax.lax.stop_gradient(outputs.policy))[..., None]
    y = [_layers(theta["y"], jax.nn.softmax(x.y)) for x in (outputs, average)]
    z = [_layers(theta["z"], jax.nn.softmax(x.z)) for x in (outputs, average)]
    steps = [
        *(of_actions(x, actions) for x in policies),
        _signed_log(rewards)[..., None],
        1 - inputs.episodes.done[..., None].astype(rewards.dtype),
        _pairs(_signed_log(values.value)[..., None]),
        _signed_log(values.advantage)[..., None],
        values.normalised_advantage[..., None],
        *(_pairs(x) for x in y),
        *(of_actions(x[:, :-1], actions) for x in z),
        *(_pairs(jnp.sum(weights * x, axis=2)) for x in z),
        *(_pairs(jnp.max(x, axis=2)) for x in z),
    ]
    by_action = [
        *policies,
        *(x[:, :-1] for x in z),
        _signed_log(values.action_value[:, :-1])[..., None],
        _signed_log(values.action_advantage[:, :-1])[..., None],
        values.normalised_action_advantage[:, :-1][..., None],
        jax.nn.one_hot(actions, weights.shape[2], dtype=weights.dtype)[..., None],
    ]
    embedded = _pooling(theta["actions"], jnp.concatenate(by_action, axis=-1))
    steps += [jnp.mean(embedded, axis=2), of_actions(embedded, actions)]
    return jnp.concatenate(steps, axis=-1), embedded


def _backwards(theta, steps, done, hidden: int):
    """States of an LSTM from the end of every episode to its start."""

    def one(state, step):
        inputs, done = step
        # What comes after the end of an episode is not its future.
        state = jax.tree.map(lambda x: jnp.where(done[:, None], 0, x), state)
        output, state = lstm(theta, state, inputs)
        return state, output

    nothing = jnp.zeros((len(done), hidden), jnp.result_type(steps, theta["w"]))
    by_time = (jnp.swapaxes(steps, 0, 1), done.T)
    _, states = jax.lax.scan(one, LSTMState(nothing, nothing), by_time, reverse=True)
    return jnp.swapaxes(states, 0, 1)


def _signed_log(x):
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def _pairs(x):
    """What is at t beside what is at t + 1."""
    return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=-1)


def _scaled_init(key, fan_in: int, fan_out: int, std: float):
    """A dense layer whose weights are not smaller where there are more inputs."""
    layer = dense_init(key, fan_in, fan_out)
    return layer | {"w": std * fan_in**0.5 * layer["w"]}


def _layers_init(key, widths, *, pooled: bool = False):
    """Dense layers; pooled ones see as many means beside their inputs."""
    keys = jax.random.split(key, len(widths) - 1)
    sizes = zip(keys, widths[:-1], widths[1:], strict=True)
    return tuple(dense_init(k, 2 * m if pooled else m, n) for k, m, n in sizes)


def _layers(theta, inputs):
    """Dense layers with rectifiers between them."""
    for layer in theta[:-1]:
        inputs = jax.nn.relu(dense(layer, inputs))
    return dense(theta[-1], inputs)


def _pooling(theta, inputs):
    """Rectified layers of every action's features beside their mean over actions."""
    for layer in theta:
        mean = jnp.broadcast_to(jnp.mean(inputs, axis=-2, keepdims=True), inputs.shape)
        inputs = jax.nn.relu(dense(layer, jnp.concatenate([inputs, mean], axis=-1)))
    return inputs
