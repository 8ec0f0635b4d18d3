import jax
import jax.numpy as jnp
import numpy as np

from metaopt import tasks


def test_steps_are_clipped_and_cost_the_squared_distance_until_the_goal():
    environment = tasks.navigation()
    task = tasks.NavigationTask(jnp.array([0.2, -0.1]))
    state = environment.reset(task, jax.random.key(0))
    seen = []
    for action in ([5.0, 0.05], [0.06, -5.0], [0.04, -0.051]):
        state, reward, done = environment.step(state, task, jnp.array(action), jax.random.key(1))
        np.testing.assert_array_equal(environment.observe(state, task), state)
        seen.append((*np.asarray(state), float(reward), bool(done)))
    expected = [
        (0.1, 0.05, -(0.1**2 + 0.15**2), False),
        (0.16, -0.05, -(0.04**2 + 0.05**2), False),
        (0.2, -0.101, -(0.001**2), True),
    ]
    np.testing.assert_allclose(seen, expected, atol=1e-7)


def test_goals_fill_the_square():
    goals = jax.vmap(tasks.navigation().sample)(jax.random.split(jax.random.key(0), 500)).goal
    assert goals.shape == (500, 2)
    assert np.all(np.abs(goals) <= 0.5)
    assert np.all(np.min(goals, axis=0) < -0.45)
    assert np.all(np.max(goals, axis=0) > 0.45)
