import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors


def test_rewards_have_the_mean_and_spread_of_the_arm():
    environment = tasks.bandit(num_arms=2, noise=0.5)
    task = tasks.BanditTask(jnp.array([1.0, -2.0]))
    keys = jax.random.split(jax.random.key(0), 2000)
    pull = jax.vmap(lambda key: environment.step((), task, jnp.array(1), key)[1])
    rewards = np.asarray(jax.jit(pull)(keys))
    assert standard_errors(rewards, -2.0) < 4
    assert standard_errors((rewards + 2) ** 2, 0.25) < 4
    assert standard_errors(rewards, -1.95) > 4


def test_an_episode_is_one_pull():
    environment = tasks.bandit(num_arms=3, noise=0.0)
    task = environment.sample(jax.random.key(0))
    assert task.means.shape == (3,)
    policy = tasks.uniform_policy(3)
    episode = tasks.rollout(environment, policy, horizon=2)((), task, jax.random.key(1))
    np.testing.assert_allclose(episode.rewards, [task.means[episode.actions[0]], 0])
    np.testing.assert_array_equal(episode.active, [True, False])


def test_no_arms_are_refused():
    with pytest.raises(ValueError, match="bandit: num_arms=0 is below 1"):
        tasks.bandit(num_arms=0)
