import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors


def test_the_only_reward_is_behind_the_right_end():
    environment = tasks.random_walk(num_states=3)
    state = environment.reset((), jax.random.key(0))
    np.testing.assert_array_equal(environment.observe(state, ()), [0, 1, 0])

    def step(state, action):
        return environment.step(jnp.array(state), (), jnp.array(action), jax.random.key(1))

    assert [float(x) for x in step(2, 1)] == [3, 1, 1]
    assert [float(x) for x in step(0, 0)] == [-1, 0, 1]
    assert [float(x) for x in step(1, 0)] == [0, 0, 0]


def test_the_value_of_the_start_is_its_share_of_the_way():
    environment = tasks.random_walk(num_states=4)
    play = tasks.rollout(environment, tasks.uniform_policy(2), horizon=60)
    keys = jax.random.split(jax.random.key(0), 1500)
    rewards = jax.jit(jax.vmap(play, (None, None, 0)))((), (), keys).rewards
    assert standard_errors(rewards.sum(axis=1), 3 / 5) < 4
    assert standard_errors(rewards.sum(axis=1), 2 / 5) > 4


def test_an_empty_corridor_is_refused():
    with pytest.raises(ValueError, match="random_walk: num_states=0 is below 1"):
        tasks.random_walk(num_states=0)
