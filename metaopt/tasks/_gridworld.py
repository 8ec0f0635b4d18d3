"""A room of cells with a goal in one of them.

    p ← clip(p + move_a, room),    r = 1 at the goal, where the episode ends, and −cost elsewhere

The actions are up, down, left and right; walls stop. Sutton and Barto 2018, Reinforcement Learning:
An Introduction, §3.5 and §4.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from metaopt.core import Scalar, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._environment import Environment

_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


class GridworldTask(NamedTuple):
    """What distinguishes tasks.

    Attributes:
        goal: row and column of the goal.
    """

    goal: Int[Array, "2"]


@checked
def gridworld(*, height: int = 5, width: int = 5, cost: Scalar = 0.0) -> Environment:
    """Walks from the middle of a room to a goal that it does not see.

    Args:
        height: rows. Static.
        width: columns. Static.
        cost: what a step costs that does not reach the goal. Traced.

    Returns:
        An environment with four actions. The goal is any cell but the middle one; the observation
        is the cell, one-hot.

    Raises:
        ValueError: if a side is below 1 or there is a single cell.
    """
    at_least_one("gridworld", height=height, width=width)
    if height * width < 2:
        raise ValueError("gridworld: height=1 and width=1 leave no cell for a goal; use 5 and 5.")
    room = (height, width)
    start = (height // 2) * width + width // 2

    def sample(key):
        # Counts the cells without the start.
        cell = jax.random.randint(key, (), 0, height * width - 1)
        cell = cell + (cell >= start)
        return GridworldTask(jnp.stack(jnp.unravel_index(cell, room)))

    def observe(state, task_params):
        del task_params
        return jax.nn.one_hot(state[0] * width + state[1], height * width)

    def step(state, task_params, action, key):
        del key
        last = jnp.array(room) - 1
        position = jnp.clip(state + jnp.array(_MOVES)[action], 0, last).astype(state.dtype)
        done = jnp.all(position == task_params.goal)
        return position, jnp.where(done, 1.0, -cost), done

    return Environment(
        sample=sample,
        reset=lambda task_params, key: jnp.array(divmod(start, width)),
        observe=observe,
        step=step,
        observation_size=height * width,
        action_size=len(_MOVES),
    )
