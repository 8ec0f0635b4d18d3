import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned._loss_features import loss_features, loss_history
from tests.learned.scheduled_by_hand import LossFeatures


def features(losses, horizon):
    """Features after each of a sequence of losses."""
    losses = jnp.asarray(losses)

    def step(history, fed):
        loss, count = fed
        seen, history = loss_features(history, loss, count, horizon=horizon)
        return history, seen

    counts = jnp.arange(len(losses))
    return jax.lax.scan(step, loss_history(losses.dtype), (losses, counts))[1]


features = jax.jit(features)


def noisy(num_steps, seed=0):
    noise = np.random.default_rng(seed).normal(size=num_steps)
    return 3 * np.exp(-np.arange(num_steps) / 30) + 0.3 * np.abs(noise)


@pytest.mark.parametrize("horizon", [100, 5])
def test_are_the_published_ones(x64, horizon):
    losses = noisy(60)
    losses[20] = 1e4
    by_hand = LossFeatures(horizon)
    expected = np.stack([by_hand(loss) for loss in losses])
    actual = features(losses, float(horizon))
    np.testing.assert_allclose(actual, expected, atol=1e-9)
    # Neither all at the ends of the range nor all zero.
    assert 0.1 < (np.abs(expected[2:]) < 0.99).mean()


def test_are_the_same_in_float32_over_a_long_training():
    # With decays rounded to float32 features are up to 0.15 off at this horizon.
    losses, horizon = noisy(400), 150_000
    by_hand = LossFeatures(horizon)
    expected = np.stack([by_hand(loss) for loss in losses])
    actual = features(losses.astype(np.float32), float(horizon))
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_first_two_are_zero_then_falling_losses_give_minus_one():
    actual = features(np.linspace(5, 1, 20, dtype=np.float32), 50.0)
    np.testing.assert_array_equal(actual[:2], 0)
    np.testing.assert_array_equal(actual[2:], -1)


def test_with_equal_time_scales_rounding_does_not_show():
    actual = features(np.asarray([93.27, 120.95, 55.48, 105.9], np.float32), 10.0)
    np.testing.assert_array_equal(actual[2], -1)
    np.testing.assert_allclose(actual[3], 0, atol=1e-5)


def test_do_not_depend_on_the_scale_of_the_loss(x64):
    losses = noisy(60)
    np.testing.assert_allclose(features(1e3 * losses, 100.0), features(losses, 100.0), atol=1e-9)


def test_one_bad_batch_counts_as_twice_the_highest_average(x64):
    losses = noisy(60)
    bad, worse = losses.copy(), losses.copy()
    bad[30], worse[30] = 1e3, 1e30
    np.testing.assert_array_equal(features(bad, 100.0), features(worse, 100.0))
    assert not np.array_equal(features(bad, 100.0), features(losses, 100.0))


def test_slopes_are_finite_where_the_loss_stands_still():
    for losses in (np.ones(20), np.zeros(20), np.full(20, 1e30)):
        slope = jax.grad(lambda losses: jnp.sum(features(losses, 100.0)))
        assert np.isfinite(slope(losses.astype(np.float32))).all()
