"""A point in the plane that walks to a goal which it does not see.

    p ← p + clip(a, −c, c),    r = −‖p − g‖²,    g ~ U[−½, ½]²,    p₀ = 0

Finn et al. 2017, arXiv:1703.03400, §5.3: an episode also ends within 0.01 of the goal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar, checked
from metaopt.tasks._environment import Environment


class NavigationTask(NamedTuple):
    """What distinguishes tasks.

    Attributes:
        goal: where to go.
    """

    goal: Float[Array, "2"]


@checked
def navigation(*, max_step: Scalar = 0.1, goal_radius: Scalar = 0.01) -> Environment:
    """Walks to a point in a square; the reward after each step is minus its squared distance.

    Args:
        max_step: largest step c along either axis. Traced.
        goal_radius: the distance below which an episode ends. Traced.

    Returns:
        An environment whose actions are vectors; state and observation are the position.
    """

    def step(state, task_params, action, key):
        del key
        position = state + jnp.clip(action, -max_step, max_step).astype(state.dtype)
        distance = jnp.sum((position - task_params.goal) ** 2)
        return position, -distance, distance < goal_radius**2

    return Environment(
        sample=lambda key: NavigationTask(jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)),
        reset=lambda task_params, key: jnp.zeros_like(task_params.goal),
        observe=lambda state, task_params: state,
        step=step,
        observation_size=2,
        action_size=2,
    )
