"""Catch: a ball falls down a board, and the paddle in the last row has to be where it lands.

    ball ← one row down,    paddle ← clip(paddle + a − 1, columns),    a = 0, 1, 2
    r = 1 where they meet in the last row, where the episode ends, −1 where they do not, 0 before

Mnih et al. 2014, arXiv:1406.6247, §4.2; in this form Osband et al. 2020, arXiv:1908.03568.
"""

import jax
import jax.numpy as jnp

from metaopt.core import checked
from metaopt.data._check import at_least_one
from metaopt.tasks._environment import Environment


@checked
def catch(*, rows: int = 5, columns: int = 5) -> Environment:
    """Moves a paddle to the left (action 0), not at all (1) or to the right (2).

    Args:
        rows: height of the board, at least 2; an episode has `rows` - 1 actions. Static.
        columns: its width. A ball can always be caught if `columns // 2 < rows`. Static.

    Returns:
        An environment without tasks, `task_params = ()`. The ball starts in any column of the first
        row, the paddle in the middle of the last one; the observation is the board, row by row,
        with ones where ball and paddle are.

    Raises:
        ValueError: if `columns` is below 1 or `rows` below 2.
    """
    at_least_one("catch", rows=rows, columns=columns)
    if rows < 2:
        raise ValueError("catch: rows=1 leaves nowhere to fall; use rows=5.")

    def reset(task_params, key):
        del task_params
        ball = jax.random.randint(key, (), 0, columns)
        return jnp.stack([jnp.zeros_like(ball), ball, jnp.full_like(ball, columns // 2)])

    def observe(state, task_params):
        del task_params
        row, ball, paddle = state
        board = jax.nn.one_hot(row * columns + ball, rows * columns)
        return jnp.maximum(board, jax.nn.one_hot((rows - 1) * columns + paddle, rows * columns))

    def step(state, task_params, action, key):
        del task_params, key
        row, ball, paddle = state
        paddle = jnp.clip(paddle + action.astype(paddle.dtype) - 1, 0, columns - 1)
        done = row + 1 >= rows - 1
        reward = jnp.where(done, jnp.where(ball == paddle, 1.0, -1.0), 0.0)
        return jnp.stack([row + 1, ball, paddle]), reward, done

    return Environment(
        sample=lambda key: (),
        reset=reset,
        observe=observe,
        step=step,
        observation_size=rows * columns,
        action_size=3,
    )
