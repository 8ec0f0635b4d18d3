import jax
import numpy as np
import pytest
import scipy.stats

from metaopt.eval import (
    envelope,
    iqm,
    iqm_interval,
    smooth,
    speedup_over,
    speedup_over_envelope,
    steps_to,
)


def test_smooth_is_the_weighted_mean_of_the_past():
    losses = np.random.default_rng(0).normal(size=(2, 30))
    steps = np.arange(30)
    lag = steps[:, None] - steps[None]
    weights = np.where(lag >= 0, 0.8 ** np.maximum(lag, 0), 0)
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(smooth(losses, decay=0.8), losses @ weights.T, rtol=1e-12)
    np.testing.assert_array_equal(smooth(losses, decay=0), losses)


def test_smooth_survives_the_largest_float32():
    worst = np.full(50, np.finfo(np.float32).max, np.float32)
    np.testing.assert_allclose(smooth(worst), worst, rtol=1e-12)


def test_smooth_refuses_a_decay_of_one():
    with pytest.raises(ValueError, match="decay must be in"):
        smooth([1.0], decay=1.0)


def test_steps_to_counts_from_one_and_censors_at_the_end():
    losses = [[8.0, 4.0, 2.0, 1.0], [8.0, np.inf, 5.0, np.nan]]
    np.testing.assert_array_equal(steps_to(losses, 8.0, decay=0), [1, 1])
    np.testing.assert_array_equal(steps_to(losses, [2.0, 5.0], decay=0), [3, 3])
    np.testing.assert_array_equal(steps_to(losses, 0.5, decay=0), [5, 5])


def test_twice_as_fast_scores_two():
    steps = np.arange(1, 101)
    reference = np.exp(-0.05 * steps)[None]
    speedup = speedup_over(np.exp(-0.1 * steps)[None] * (1 - 1e-12), reference, decay=0)
    np.testing.assert_array_equal(speedup.ratio, [2.0])
    np.testing.assert_array_equal(speedup.steps, [50])
    assert not speedup.censored.any()


def test_a_curve_scores_one_against_itself_however_noisy():
    losses = np.random.default_rng(0).normal(size=(5, 60))
    speedup = speedup_over(losses, losses)
    np.testing.assert_array_equal(speedup.ratio, np.ones(5))
    assert (speedup.steps < 60).any()


def test_a_run_that_never_gets_there_is_censored():
    speedup = speedup_over(np.ones((1, 10)), np.linspace(1, 0, 10)[None], decay=0)
    assert speedup.censored.all()
    np.testing.assert_allclose(speedup.ratio, 10 / 11)
    with pytest.raises(ValueError, match="same seeds"):
        speedup_over(np.ones((2, 10)), np.ones((1, 10)))


def test_envelope_is_the_running_minimum_over_learning_rates():
    rng = np.random.default_rng(0)
    losses = rng.uniform(1, 2, size=(3, 4, 50))
    losses[0, 1, 20:] = np.nan
    losses[1, 0, 30] = np.inf
    curves = smooth(losses.mean(1))
    expected = [
        min(c[s] for c in curves for s in range(t + 1) if np.isfinite(c[s])) for t in range(50)
    ]
    np.testing.assert_array_equal(envelope(losses), expected)


def test_half_the_envelopes_steps_score_two():
    losses = np.stack([np.exp(-0.01 * np.arange(400)), np.exp(-0.002 * np.arange(400))])
    levels = envelope(losses[:, None])
    assert speedup_over_envelope(levels[199], levels, num_steps=100) == 2
    assert speedup_over_envelope(levels[99], levels, num_steps=100) == 1


def test_envelope_score_interpolates_censors_and_punishes_divergence():
    levels = [np.inf, 4.0, 2.0, 2.0, 1.0]
    losses = [3.0, 2.0, 1.5, 0.5, 9.0, np.nan, np.inf]
    # 4 is first reached after 2 steps, 2 after 3, 1 after 5.
    expected = [2.5 / 2, 3 / 2, 4 / 2, 5 / 2, 2 / 2, 0, 0]
    np.testing.assert_allclose(speedup_over_envelope(losses, levels, num_steps=2), expected)
    with pytest.raises(ValueError, match="nowhere finite"):
        speedup_over_envelope(1.0, [np.inf, np.inf], num_steps=2)


@pytest.mark.parametrize("size", [4, 8, 40])
def test_iqm_is_the_trimmed_mean(size):
    scores = np.random.default_rng(size).normal(size=size)
    np.testing.assert_allclose(iqm(scores), scipy.stats.trim_mean(scores, 0.25), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 9, 11])
def test_iqm_weighs_scores_on_the_quartiles_by_what_is_inside(size):
    # Four copies of every score have the same middle half, and their number is divisible by 4.
    scores = np.random.default_rng(size).normal(size=size)
    expected = scipy.stats.trim_mean(np.repeat(scores, 4), 0.25)
    np.testing.assert_allclose(iqm(scores), expected, rtol=1e-12)


def test_iqm_by_hand():
    assert iqm([[1, 2, 3], [4, 5, 100]]) == (0.5 * 2 + 3 + 4 + 0.5 * 5) / 3
    with pytest.raises(ValueError, match="no scores"):
        iqm([])


def test_interval_covers_the_mean_and_rejects_a_wrong_one():
    num_sets, num_tasks, num_seeds = 200, 8, 20
    scores = np.random.default_rng(0).normal(3.0, 1.0, size=(num_sets, num_tasks, num_seeds))
    keys = jax.random.split(jax.random.key(0), num_sets)
    intervals = [iqm_interval(s, k, num_replicates=400) for s, k in zip(scores, keys, strict=True)]
    low, high = np.array([i.low for i in intervals]), np.array([i.high for i in intervals])

    def coverage(mean):
        return np.mean((low <= mean) & (mean <= high))

    standard_error = np.sqrt(0.95 * 0.05 / num_sets)
    assert abs(coverage(3.0) - 0.95) < 4 * standard_error
    # Four standard errors of the mean away.
    assert coverage(3.0 + 4 / np.sqrt(num_tasks * num_seeds)) < 0.2


def test_bootstrap_is_stratified_by_task():
    # Without seed noise nothing varies, however different the tasks.
    scores = np.repeat([[1.0], [10.0], [100.0], [1000.0]], 3, axis=1)
    interval = iqm_interval(scores, jax.random.key(0), num_replicates=50)
    assert interval == (55.0, 55.0, 55.0)


@pytest.mark.parametrize(
    ("scores", "level", "message"),
    [(np.ones(3), 0.95, "add an axis"), (np.ones((1, 3)), 95, "level must be in")],
)
def test_interval_refuses_bad_input(scores, level, message):
    with pytest.raises(ValueError, match=message):
        iqm_interval(scores, jax.random.key(0), level=level)
