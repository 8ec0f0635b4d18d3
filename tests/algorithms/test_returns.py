import jax
import jax.numpy as jnp
import numpy as np

from metaopt.algorithms import lambda_returns
from metaopt.algorithms._returns import linear_baseline, mean_baseline
from tests.helpers import central_differences, relative_error

REWARDS = np.array([1.0, -0.5, 2.0, 0.3, 0.7])
DISCOUNTS = np.array([0.9, 0.9, 0.0, 0.9, 0.9])
VALUES = np.array([0.4, -1.0, 3.0, 0.2, 0.6])


def by_definition(trace):
    """(1 − λ) Σₙ λⁿ⁻¹ (n-step return) to the last step, where the rest of the weight goes."""
    results = []
    for t in range(5):
        total, reward, weight = 0.0, 0.0, 1.0
        for n in range(t, 5):
            reward += weight * REWARDS[n]
            weight *= DISCOUNTS[n]
            share = (1 - trace) * trace ** (n - t) if n < 4 else trace ** (n - t)
            total += share * (reward + weight * VALUES[n])
        results.append(total)
    return np.array(results)


def test_agrees_with_the_mixture_of_all_n_step_returns(x64):
    for trace in (0.0, 0.3, 1.0):
        actual = jax.jit(lambda_returns)(REWARDS, DISCOUNTS, VALUES, trace)
        np.testing.assert_allclose(actual, by_definition(trace), rtol=1e-12)


def test_derivatives_by_discount_and_trace_are_right(x64):
    def total(settings):
        discounts = settings[0] * jnp.asarray(DISCOUNTS)
        returns = lambda_returns(jnp.asarray(REWARDS), discounts, jnp.asarray(VALUES), settings[1])
        return jnp.sum(returns * jnp.arange(5.0))

    settings = jnp.array([0.8, 0.4])
    expected = central_differences(total, settings)
    assert relative_error(jax.jit(jax.grad(total))(settings), expected) < 1e-8


def test_the_mean_baseline_leaves_the_episode_out():
    returns = jnp.array([[1.0, 2.0], [3.0, 99.0], [8.0, 6.0]])
    active = jnp.array([[True, True], [True, False], [True, True]])
    baseline = mean_baseline(returns, active)
    np.testing.assert_allclose(baseline[:, 0], [5.5, 4.5, 2.0])
    np.testing.assert_allclose(baseline[jnp.array([0, 2]), 1], [6.0, 2.0])


def test_the_linear_baseline_finds_a_linear_rule_and_ignores_what_is_not_active(x64):
    observations = jax.random.normal(jax.random.key(0), (6, 5, 2))
    time = jnp.arange(5)[None] / 5
    exact = 2 * observations[..., 0] - observations[..., 1] ** 2 + 3 * time**2 + 1
    active = jnp.arange(5)[None] < jnp.array([5, 5, 3, 5, 5, 2])[:, None]
    fitted = jax.jit(linear_baseline)(observations, jnp.where(active, exact, 1e6), active)
    # Up to the ridge.
    assert relative_error(fitted[active], exact[active]) < 1e-2
