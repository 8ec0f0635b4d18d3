"""Agents of DiscoRL: a policy, predictions without a meaning, and a model of every action.

    x = torso(o),    π, y = heads(x)
    h_a = LSTM(one-hot a; state from x),    z_a, p_a, q_a = heads(h_a)    for every action a

y(o) and z(o, a) are distributions whose meaning is up to a learned rule; p(o, a) predicts the next
policy, and q(o, a) is a distribution over values. Oh et al. 2025, doi:10.1038/s41586-025-09761-x.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Params, checked
from metaopt.data._check import at_least_one
from metaopt.learned._recurrent import LSTMState, dense, dense_init, lstm, lstm_init
from metaopt.tasks._mlp import activation_and_init, dense_layers

# Of the initial weights of the policy and y, whose distributions start almost uniform.
_SMALL = 0.01


class DiscoOutputs(NamedTuple):
    """What an agent says of an observation, all of it as logits.

    Attributes:
        policy: of the actions.
        y: the prediction.
        z: the prediction for every action.
        next_policy: the policy after every action.
        value_bins: the distribution of the value of every action.
    """

    policy: Float[Array, "*batch actions"]
    y: Float[Array, "*batch predictions"]
    z: Float[Array, "*batch actions predictions"]
    next_policy: Float[Array, "*batch actions actions"]
    value_bins: Float[Array, "*batch actions bins"]


class DiscoAgent(NamedTuple):
    """An agent.

    Attributes:
        init: `(key) -> params`.
        apply: `(params, observation) -> DiscoOutputs`.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[[Params, Array], DiscoOutputs]


@checked
def disco_agent(
    observation_size: int,
    num_actions: int,
    *,
    num_predictions: int = 16,
    num_bins: int = 601,
    hidden: Sequence[int] = (64, 32),
    model: int = 32,
    activation: str = "relu",
) -> DiscoAgent:
    """A perceptron, and a recurrent step from its features with every action.

    Args:
        observation_size: length of an observation. Static.
        num_actions: number of actions. Static.
        num_predictions: length of y and of z; 600 in the paper. Static.
        num_bins: grid points of values, from -`max_value` to `max_value` of `disco_rl`. Static.
        hidden: widths of the torso's layers. Static.
        model: width of the model's recurrent step and of its heads' hidden layers. Static.
        activation: as in `metaopt.tasks.mlp`. Static.

    Returns:
        An agent whose `params` are a dict of its parts: "torso", "flat" for π and y, "root",
        "model", "z", "next_policy" and "value_bins".

    Raises:
        ValueError: if a size is below 1 or `activation` is unknown.
    """
    name = "disco_agent"
    sizes = {"observation_size": observation_size, "num_actions": num_actions, "model": model}
    at_least_one(name, **sizes, num_predictions=num_predictions, num_bins=num_bins)
    act, _ = activation_and_init(name, activation)
    widths = (observation_size, *hidden)
    torso_init, torso = dense_layers(name, (*widths, widths[-1]), activation)
    outputs = {"z": num_predictions, "next_policy": num_actions, "value_bins": num_bins}
    heads = {part: dense_layers(name, (model, model, n), "relu") for part, n in outputs.items()}

    def init(key):
        parts = ("torso", "flat", "root", "model", *heads)
        keys = dict(zip(parts, jax.random.split(key, len(parts)), strict=True))
        flat = dense_init(keys["flat"], widths[-1], num_actions + num_predictions)
        made = {part: head_init(keys[part]) for part, (head_init, _) in heads.items()}
        return made | {
            "torso": torso_init(keys["torso"]),
            "flat": flat | {"w": _SMALL * flat["w"]},
            "root": dense_init(keys["root"], widths[-1], model),
            "model": lstm_init(keys["model"], num_actions, model),
        }

    def apply(params, observation):
        features = act(torso(params["torso"], observation[None])[0])
        flat = dense(params["flat"], features)
        root = dense(params["root"], features)
        actions = jnp.eye(num_actions, dtype=root.dtype)
        carried = jnp.broadcast_to(root, (num_actions, model))
        after, _ = lstm(params["model"], LSTMState(jnp.tanh(carried), carried), actions)
        by_action = {part: head(params[part], after) for part, (_, head) in heads.items()}
        return DiscoOutputs(policy=flat[:num_actions], y=flat[num_actions:], **by_action)

    return DiscoAgent(init, apply)
