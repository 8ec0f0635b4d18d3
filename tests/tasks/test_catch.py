import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors


def test_the_ball_falls_and_the_paddle_stays_on_the_board():
    environment = tasks.catch(rows=4, columns=3)
    state, seen = jnp.array([0, 2, 1]), []
    for action in (2, 2, 1):
        board = np.asarray(environment.observe(state, ())).reshape(4, 3)
        seen.append(sorted(map(tuple, np.argwhere(board).tolist())))
        state, reward, done = environment.step(state, (), jnp.array(action), jax.random.key(0))
        seen.append((float(reward), bool(done)))
    start, first, right, second, wall, last = seen
    assert start == [(0, 2), (3, 1)]
    assert right == [(1, 2), (3, 2)]
    assert wall == [(2, 2), (3, 2)]
    assert (first, second, last) == ((0, False), (0, False), (1, True))
    board = np.asarray(environment.observe(state, ())).reshape(4, 3)
    np.testing.assert_array_equal(np.argwhere(board), [[3, 2]])


def uniform_return(rows, columns):
    """Expected return of the uniform policy: the paddle as a Markov chain."""
    move = np.zeros((columns, columns))
    for paddle in range(columns):
        for shift in (-1, 0, 1):
            move[paddle, np.clip(paddle + shift, 0, columns - 1)] += 1 / 3
    where = np.linalg.matrix_power(move, rows - 1)[columns // 2]
    return 2 * np.mean(where) - 1


def test_returns_are_those_of_the_markov_chain():
    environment = tasks.catch(rows=4, columns=5)

    def play(policy):
        keys = jax.random.split(jax.random.key(0), 2000)
        run = tasks.rollout(environment, policy, horizon=5)
        return jax.jit(jax.vmap(run, (None, None, 0)))((), (), keys)

    episodes = play(tasks.uniform_policy(3))
    returns = np.sum(episodes.rewards, axis=1)
    assert standard_errors(returns, uniform_return(4, 5)) < 4
    assert standard_errors(returns, uniform_return(4, 5) + 0.2) > 4
    np.testing.assert_array_equal(episodes.active, [[True, True, True, False, False]] * 2000)

    def follow(params, observation):
        board = observation.reshape(4, 5)
        shift = jnp.argmax(jnp.max(board[:3], axis=0)) - jnp.argmax(board[3])
        return 100.0 * jax.nn.one_hot(jnp.sign(shift) + 1, 3)

    caught = play(tasks.policy_of_logits(lambda key: (), follow))
    np.testing.assert_array_equal(np.sum(caught.rewards, axis=1), 1)


def test_a_board_without_a_fall_is_refused():
    with pytest.raises(ValueError, match="catch: rows=1 leaves nowhere to fall"):
        tasks.catch(rows=1)
    with pytest.raises(ValueError, match="catch: columns=0"):
        tasks.catch(columns=0)
