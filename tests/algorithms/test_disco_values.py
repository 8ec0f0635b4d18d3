import jax
import jax.numpy as jnp
import numpy as np

from metaopt.algorithms import lambda_returns
from metaopt.algorithms._disco_values import (
    evaluate,
    expected_value,
    no_averages,
    normalised,
    retrace,
    squash,
    two_hot,
    unsquash,
    update_averages,
)

RNG = np.random.default_rng(0)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def test_squashing_and_its_inverse_are_identity(x64):
    x = np.array([-250.0, -3.0, -0.01, 0.0, 1e-8, 0.5, 80.0])
    printed = np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 1e-3 * x
    np.testing.assert_allclose(squash(jnp.asarray(x)), printed, rtol=1e-12)
    np.testing.assert_allclose(unsquash(squash(jnp.asarray(x))), x, rtol=1e-7, atol=1e-15)


def test_small_values_keep_their_digits_in_closed_form():
    # As printed, the inverse loses all but three digits here in float32.
    x = jnp.array([1e-4, -3e-4], jnp.float32)
    np.testing.assert_allclose(unsquash(squash(x)), x, rtol=2e-3)
    np.testing.assert_allclose(unsquash(x), x / 0.501, rtol=2e-3)


def test_two_hot_distributions_have_the_value_as_a_mean_by_hand(x64):
    values = jnp.array([[-1.3, 0.0, 0.7], [2.5, 900.0, -900.0]])
    probs = np.asarray(two_hot(values, 7, 3.0))
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-12)
    assert ((probs > 0).sum(axis=-1) <= 2).all()
    inside = np.clip(np.asarray(squash(values)), -3, 3)
    np.testing.assert_allclose(probs @ np.linspace(-3, 3, 7), inside, atol=1e-12)
    logits = jnp.log(jnp.asarray(probs) + 1e-300)
    np.testing.assert_allclose(
        expected_value(logits, 3.0)[:, 0], np.asarray(values)[:, 0], rtol=1e-9
    )


def test_targets_agree_with_a_numpy_loop(x64):
    num, horizon, actions, bins, trace = 2, 3, 2, 5, 0.8
    logits = RNG.normal(size=(num, horizon + 1, actions))
    behaviour = RNG.normal(size=(num, horizon, actions))
    own = RNG.normal(size=(num, horizon + 1, actions, bins))
    average = RNG.normal(size=(num, horizon + 1, actions, bins))
    taken = np.array([[0, 1, 1], [1, 0, 1]])
    rewards, discounts = RNG.normal(size=(num, horizon)), np.array([[0.9, 0.9, 0.9], [0.9, 0, 0.9]])
    values = jax.jit(evaluate, static_argnames=("trace", "max_value"))(
        *map(jnp.asarray, (rewards, discounts, taken, logits, behaviour, own, average)),
        trace=trace,
        max_value=2.0,
    )

    def scalar(x):
        x = softmax(x) @ np.linspace(-2, 2, bins)
        root = (np.sqrt(1 + 4e-3 * (np.abs(x) + 1 + 1e-3)) - 1) / 2e-3
        return np.sign(x) * (root**2 - 1)

    pi, mu, q = softmax(logits), softmax(behaviour), scalar(average)
    v = (pi * q).sum(axis=-1)
    for e in range(num):
        excess = 0.0
        for t in reversed(range(horizon)):
            a = taken[e, t]
            target = rewards[e, t] + discounts[e, t] * (v[e, t + 1] + excess)
            excess = trace * min(1, pi[e, t, a] / mu[e, t, a]) * (target - q[e, t, a])
            np.testing.assert_allclose(values.target[e, t], target, rtol=1e-9)
            np.testing.assert_allclose(values.advantage[e, t], target - v[e, t], rtol=1e-8)
    np.testing.assert_allclose(values.value, (pi * scalar(own)).sum(axis=-1), rtol=1e-8)
    np.testing.assert_allclose(values.action_value, q, rtol=1e-8)
    np.testing.assert_allclose(values.action_advantage, q - v[..., None], rtol=1e-7, atol=1e-9)


def test_values_without_advantages_leave_lambda_returns_an_identity(x64):
    rewards, values = jnp.asarray(RNG.normal(size=4)), jnp.asarray(RNG.normal(size=5))
    discounts, traces = jnp.array([0.9, 0.5, 0.0, 0.9]), jnp.full(4, 0.7)
    ours = retrace(rewards, discounts, values[:-1], values[1:], traces)
    theirs = lambda_returns(rewards, discounts, values[1:], jnp.array(0.7))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_running_moments_are_weighted_means_by_hand(x64):
    signals, active = RNG.normal(size=(3, 2, 2)), np.array([[True, False], [True, True]])
    averages = no_averages()
    for signal in signals:
        averages = update_averages(averages, jnp.asarray(signal), jnp.asarray(active))
    weights = 0.99 ** np.array([2, 1, 0])
    counted = signals[:, active]
    mean = np.sum(weights * counted.mean(axis=1)) / weights.sum()
    square = np.sum(weights * (counted**2).mean(axis=1)) / weights.sum()
    expected = (signals[0] - mean) / (np.sqrt(square - mean**2) + 1e-6)
    np.testing.assert_allclose(normalised(averages, jnp.asarray(signals[0])), expected, rtol=1e-9)


def test_a_signal_that_never_varied_stays_small_at_first():
    averages = update_averages(no_averages(), jnp.full((2, 2), 3.0), jnp.ones((2, 2), bool))
    assert np.abs(normalised(averages, jnp.full(2, 3.0))).max() < 1
