"""Policies and value functions: perceptrons whose outputs are logits, means or values.

    categorical   π(a | o) = softmax(f(o))_a
    gaussian      a ~ N(f(o), σ² I),    σ fixed
    uniform       π(a | o) = 1/A

Sutton and Barto 2018, Reinforcement Learning: An Introduction, §13.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Params, Scalar, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._environment import Policy
from metaopt.tasks._mlp import dense_layers


class ValueFunction(NamedTuple):
    """An estimate of the return to come.

    Attributes:
        init: `(key) -> params`.
        apply: `(params, observation) -> scalar`.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[[Params, Array], Float[Array, ""]]


@checked
def categorical_policy(
    observation_size: int, num_actions: int, *, hidden: Sequence[int] = (), activation: str = "tanh"
) -> Policy:
    """A perceptron's outputs are the logits of the actions 0, ..., `num_actions` - 1.

    Args:
        observation_size: length of an observation. Static.
        num_actions: number of actions. Static.
        hidden: widths of the hidden layers; `()` for logits linear in the observation. Static.
        activation: as in `mlp`. Static.

    Returns:
        A policy whose `params` are those of `mlp`.

    Raises:
        ValueError: if a size is below 1 or `activation` is unknown.
    """
    name = "categorical_policy"
    at_least_one(name, observation_size=observation_size, num_actions=num_actions)
    init, logits = _on_vectors(name, (observation_size, *hidden, num_actions), activation)
    return policy_of_logits(init, logits)


@checked
def policy_of_logits(
    init: Callable[[PRNGKeyArray], Params], logits: Callable[[Params, Array], Array]
) -> Policy:
    """A categorical policy from two plain functions.

    Args:
        init: `(key) -> params`.
        logits: `(params, observation) -> logits` of the actions, a vector.

    Returns:
        A policy.
    """
    return Policy(
        init,
        lambda params, observation, key: jax.random.categorical(key, logits(params, observation)),
        lambda params, observation, action: jax.nn.log_softmax(logits(params, observation))[action],
    )


@checked
def gaussian_policy(
    observation_size: int,
    action_size: int,
    *,
    hidden: Sequence[int] = (32, 32),
    activation: str = "tanh",
    log_std: Scalar = -1.5,
) -> Policy:
    """A perceptron's outputs are the means of independent normal actions.

    Args:
        observation_size: length of an observation. Static.
        action_size: length of an action. Static.
        hidden: widths of the hidden layers. Static.
        activation: as in `mlp`. Static.
        log_std: logarithm of the standard deviation, which is not learned. Traced.

    Returns:
        A policy whose `params` are those of `mlp`.

    Raises:
        ValueError: if a size is below 1 or `activation` is unknown.
    """
    name = "gaussian_policy"
    at_least_one(name, observation_size=observation_size, action_size=action_size)
    init, mean = _on_vectors(name, (observation_size, *hidden, action_size), activation)

    def sample(params, observation, key):
        centre = mean(params, observation)
        return centre + jnp.exp(log_std) * jax.random.normal(key, centre.shape, centre.dtype)

    def log_prob(params, observation, action):
        scaled = (action - mean(params, observation)) * jnp.exp(-log_std)
        constant = action_size * (log_std + 0.5 * jnp.log(2 * jnp.pi))
        return -0.5 * jnp.sum(scaled**2) - constant

    return Policy(init, sample, log_prob)


@checked
def uniform_policy(num_actions: int) -> Policy:
    """Every action alike, without parameters: for the prediction of values.

    Args:
        num_actions: number of actions. Static.

    Returns:
        A policy with `params = ()`.

    Raises:
        ValueError: if `num_actions < 1`.
    """
    at_least_one("uniform_policy", num_actions=num_actions)
    return policy_of_logits(lambda key: (), lambda params, observation: jnp.zeros(num_actions))


@checked
def value_function(
    observation_size: int, *, hidden: Sequence[int] = (), activation: str = "tanh"
) -> ValueFunction:
    """A perceptron with one output.

    Args:
        observation_size: length of an observation. Static.
        hidden: widths of the hidden layers. Static.
        activation: as in `mlp`. Static.

    Returns:
        A value function whose `params` are those of `mlp`.

    Raises:
        ValueError: if a size is below 1 or `activation` is unknown.
    """
    at_least_one("value_function", observation_size=observation_size)
    init, apply = _on_vectors("value_function", (observation_size, *hidden, 1), activation)
    return ValueFunction(init, lambda params, observation: apply(params, observation)[0])


def _on_vectors(function, widths, activation):
    """A perceptron that takes one observation."""
    init, apply = dense_layers(function, widths, activation)
    return init, lambda params, observation: apply(params, observation[None])[0]
