import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import unroll
from metaopt.estimators import backprop, gpes, pes, truncated_backprop
from metaopt.eval import sample_estimator
from tests.estimators import toys
from tests.helpers import standard_errors

THETA = jnp.array([0.3, -0.2])


def sample(estimator, num_samples=2, theta=THETA):
    return sample_estimator(estimator, theta, (), jax.random.key(0), num_samples=num_samples)


def test_whole_trajectories_are_one_estimate_per_sample():
    samples = sample(backprop(toys.linear(), horizon=6, num_tasks=3))
    np.testing.assert_allclose(samples.grads, [toys.linear_gradient(6)] * 2, rtol=1e-5)
    assert samples.estimates_per_sample == 1
    assert samples.inner_steps == 18
    assert samples.oracles.hessian_products == 18
    assert samples.temp_bytes > 0
    assert samples.seconds > 0


@pytest.mark.parametrize("stagger", [False, True])
def test_windows_are_averaged_over_a_trajectory_at_every_phase(stagger):
    # Each window sees only its own steps, from whatever state: the mean of 1, 2, 3.
    estimator = truncated_backprop(
        toys.counter(), truncation=3, horizon=12, num_tasks=2, stagger=stagger
    )
    samples = sample(estimator, theta=jnp.array(0.5))
    assert samples.estimates_per_sample == 4
    np.testing.assert_allclose(samples.grads, 2.0, rtol=1e-6)
    assert samples.inner_steps == 4 * 6


@pytest.mark.parametrize("make", [pes, gpes])
def test_windows_of_staggered_persistent_noise_are_unbiased(make):
    estimator = make(toys.counter(), sigma=1.0, truncation=2, horizon=4, num_tasks=64)
    samples = sample(estimator, 100, theta=jnp.array(0.5))
    # The mean over four steps of the derivative of the sum so far.
    assert standard_errors(samples.grads, 2.5) < 4
    assert standard_errors(samples.grads, 1.1 * 2.5) > 4


def test_a_system_that_ends_by_itself_gives_single_windows():
    system = unroll.auto_reset(toys.counter(), horizon=4)
    estimator = truncated_backprop(system, truncation=2, horizon=None, num_tasks=2)
    assert sample(estimator, theta=jnp.array(0.5)).estimates_per_sample == 1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="sample_estimator: num_samples must be at least 1"):
        sample(backprop(toys.linear(), horizon=6), 0)
