"""Bandits: one action, one reward, and nothing to observe.

    r ~ N(μ_a, noise²),    μ_a ~ N(0, 1) for every arm of a task

Sutton and Barto 2018, Reinforcement Learning: An Introduction, §2.3 (the ten-armed testbed).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._environment import Environment


class BanditTask(NamedTuple):
    """What distinguishes bandits.

    Attributes:
        means: mean reward of every arm.
    """

    means: Float[Array, " arms"]


@checked
def bandit(*, num_arms: int = 5, noise: Scalar = 1.0) -> Environment:
    """Normal rewards whose means are the task; every episode is one pull.

    Args:
        num_arms: arms. Static.
        noise: standard deviation of a reward. Traced.

    Returns:
        An environment without a state. The observation is a zero, so that the logits of a linear
        policy are its biases, and zero at first.

    Raises:
        ValueError: if `num_arms < 1`.
    """
    at_least_one("bandit", num_arms=num_arms)

    def step(state, task_params, action, key):
        means = task_params.means
        reward = means[action] + noise * jax.random.normal(key, (), means.dtype)
        return state, reward, jnp.array(True)

    return Environment(
        sample=lambda key: BanditTask(jax.random.normal(key, (num_arms,))),
        reset=lambda task_params, key: (),
        observe=lambda state, task_params: jnp.zeros(1),
        step=step,
        observation_size=1,
        action_size=num_arms,
    )
