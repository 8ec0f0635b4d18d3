import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks


def counter(*, end):
    """Counts actions up to `end`; the reward is 10 times the count plus the action."""

    def step(state, task_params, action, key):
        return state + 1, (10 * (state + 1) + action).astype(float), state + 1 >= end

    return tasks.Environment(
        sample=lambda key: (),
        reset=lambda task_params, key: jnp.array(0),
        observe=lambda state, task_params: state.astype(float)[None],
        step=step,
        observation_size=1,
        action_size=2,
    )


def alternating():
    """The action is the parity of what is seen."""
    return tasks.Policy(
        init=lambda key: (),
        sample=lambda params, observation, key: observation[0].astype(int) % 2,
        log_prob=lambda params, observation, action: jnp.zeros(()),
    )


def test_an_episode_that_ends_early_stands_still_and_is_marked():
    play = tasks.rollout(counter(end=3), alternating(), horizon=5)
    episode = jax.jit(play)((), (), jax.random.key(0))
    np.testing.assert_array_equal(episode.observations[:, 0], [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(episode.actions, [0, 1, 0, 1, 1])
    np.testing.assert_array_equal(episode.rewards, [10, 21, 30, 0, 0])
    np.testing.assert_array_equal(episode.done, [False, False, True, False, False])
    np.testing.assert_array_equal(episode.active, [True, True, True, False, False])
    np.testing.assert_array_equal(episode.final_observation, [3])


def test_an_episode_that_is_cut_off_is_not_done():
    episode = tasks.rollout(counter(end=9), alternating(), horizon=2)((), (), jax.random.key(0))
    assert not np.any(episode.done)
    assert np.all(episode.active)
    np.testing.assert_array_equal(episode.final_observation, [2])


def test_an_empty_horizon_is_refused():
    with pytest.raises(ValueError, match="rollout: horizon=0 is below 1"):
        tasks.rollout(counter(end=3), alternating(), horizon=0)
