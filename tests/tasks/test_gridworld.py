import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks


def test_walls_stop_and_the_goal_ends():
    environment = tasks.gridworld(height=3, width=4, cost=0.1)
    task = tasks.GridworldTask(jnp.array([0, 3]))
    state, seen = environment.reset(task, jax.random.key(0)), []
    for action in (0, 0, 3, 3):  # Up, up against the wall, right, right against the wall.
        cell = int(np.argmax(environment.observe(state, task)))
        state, reward, done = environment.step(state, task, jnp.array(action), jax.random.key(1))
        seen.append((cell, *np.asarray(state), float(reward), bool(done)))
    expected = [(6, 0, 2, -0.1, False), (2, 0, 2, -0.1, False), (2, 0, 3, 1, True)]
    np.testing.assert_allclose(seen[:3], expected, atol=1e-7)
    assert seen[3][:3] == (3, 0, 3)


def test_goals_are_all_cells_but_the_start():
    environment = tasks.gridworld(height=2, width=3)
    goals = jax.vmap(environment.sample)(jax.random.split(jax.random.key(0), 200)).goal
    found = {tuple(goal) for goal in np.asarray(goals).tolist()}
    start = tuple(np.asarray(environment.reset((), jax.random.key(1))).tolist())
    assert found == {(row, column) for row in range(2) for column in range(3)} - {start}


def test_a_room_without_a_goal_is_refused():
    with pytest.raises(ValueError, match="gridworld: height=1 and width=1 leave no cell"):
        tasks.gridworld(height=1, width=1)
    with pytest.raises(ValueError, match="gridworld: height=0"):
        tasks.gridworld(height=0)
