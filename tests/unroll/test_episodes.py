import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import unroll
from metaopt.core import StepInfo, System
from tests.estimators import toys
from tests.unroll.test_unroll import breaks_at


def windows(run, theta, num_windows, key):
    key_begin, key_run = jax.random.split(key)
    episode, reports = run.begin(theta, (), key_begin), []
    window = jax.jit(run.window)
    for k in jax.random.split(key_run, num_windows):
        episode, report = window(theta, episode, (), k)
        reports.append(report)
    return episode, reports


def test_trajectories_start_anew_where_they_have_ended():
    run = unroll.episodes(toys.counter(), truncation=2, horizon=6, stagger=False)
    _, reports = windows(run, jnp.array(1.0), 5, jax.random.key(0))
    np.testing.assert_array_equal(
        np.concatenate([r.loss for r in reports]), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    )
    np.testing.assert_array_equal(
        np.concatenate([r.done for r in reports]), [False] * 5 + [True] + [False] * 4
    )


def test_a_frozen_task_starts_anew_with_the_next_trajectory():
    run = unroll.episodes(breaks_at(3), truncation=2, horizon=6, stagger=False)
    _, reports = windows(run, jnp.array(1.0), 4, jax.random.key(1))
    assert [bool(r.frozen) for r in reports] == [False, True, True, False]
    np.testing.assert_array_equal(reports[2].loss, 10)


def test_staggered_clocks_are_uniform_over_the_windows():
    run = unroll.episodes(toys.counter(), truncation=5, horizon=20)
    begin = jax.vmap(lambda key: run.begin(jnp.array(1.0), (), key).clock)
    clocks = np.asarray(begin(jax.random.split(jax.random.key(2), 8_000)))
    shares = [(clocks == c).mean() for c in (0, 5, 10, 15)]
    np.testing.assert_allclose(shares, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 8_000))


def test_arms_of_different_theta_end_together():
    run = unroll.episodes(toys.linear(), truncation=2, horizon=unroll.log_uniform(2, 10))
    key = jax.random.key(3)
    lengths = [
        windows(run, theta, 6, jax.random.clone(key))[0].length
        for theta in (jnp.ones(2), jnp.zeros(2))
    ]
    assert lengths[0] == lengths[1]


def test_every_trajectory_is_told_its_length():
    def init(theta, data, key, *, num_steps=None):
        return num_steps

    def step(theta, state, data, key):
        return state, StepInfo(state * 1.0, jnp.array(False))

    run = unroll.episodes(System(init, step), truncation=2, horizon=unroll.log_uniform(2, 40))
    episode, reports = windows(run, jnp.ones(2), 30, jax.random.key(4))
    assert reports[-1].loss[-1] == episode.length
    assert len({float(r.loss[0]) for r in reports}) > 2


@pytest.mark.parametrize("horizon", [1, 3, 4])
def test_auto_reset_ends_at_any_step(horizon):
    system = unroll.auto_reset(toys.counter(), horizon=horizon)
    theta = jnp.array(1.0)
    _, infos = unroll.unroll(system, num_steps=12)(
        theta, system.init(theta, (), jax.random.key(5)), (), jax.random.key(6)
    )
    time = np.arange(12) % horizon
    np.testing.assert_array_equal(infos.loss, time + 1)
    np.testing.assert_array_equal(infos.done, time == horizon - 1)


def test_auto_reset_revives_a_frozen_trajectory():
    system = unroll.auto_reset(breaks_at(1), horizon=3)
    theta = jnp.array(1.0)
    _, infos = unroll.unroll(system, num_steps=6)(
        theta, system.init(theta, (), jax.random.key(7)), (), jax.random.key(8)
    )
    np.testing.assert_array_equal(infos.loss, 10)
    np.testing.assert_array_equal(infos.done, [False, False, True] * 2)
