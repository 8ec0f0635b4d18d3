"""A corridor with a reward behind its right end.

    s ← s ± 1 from the middle of n states;    r = 1 on leaving to the right, 0 otherwise

Under the uniform policy the value of state i = 1, ..., n is i/(n + 1). Sutton and Barto 2018,
Reinforcement Learning: An Introduction, §6.2 (there with five states).
"""

import jax
import jax.numpy as jnp

from metaopt.core import checked
from metaopt.data._check import at_least_one
from metaopt.tasks._environment import Environment


@checked
def random_walk(*, num_states: int = 10) -> Environment:
    """Steps to the left (action 0) or right (1) until an end is left.

    Args:
        num_states: states n of the corridor. Static.

    Returns:
        An environment without tasks, `task_params = ()`; the observation is the state, one-hot.

    Raises:
        ValueError: if `num_states < 1`.
    """
    at_least_one("random_walk", num_states=num_states)

    def step(state, task_params, action, key):
        del task_params, key
        state = state + 2 * action.astype(state.dtype) - 1
        right = state >= num_states
        return state, right.astype(float), right | (state < 0)

    return Environment(
        sample=lambda key: (),
        reset=lambda task_params, key: jnp.array(num_states // 2),
        observe=lambda state, task_params: jax.nn.one_hot(state, num_states),
        step=step,
        observation_size=num_states,
        action_size=2,
    )
