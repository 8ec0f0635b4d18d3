import numpy as np
import pytest

from metaopt.eval import bias, relative_noise

RNG = np.random.default_rng(0)
TARGET = np.array([3.0, -4.0, 0.0])


def noisy(mean, num_samples, scale=1.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal((num_samples, len(mean)))
    return np.asarray(mean) + scale * noise


def test_without_bias_the_squared_bias_is_around_zero_and_its_error_is_honest():
    scores, projections = [], []
    for seed in range(300):
        samples, reference = noisy(TARGET, 24, 5.0, 2 * seed), noisy(TARGET, 24, 5.0, 2 * seed + 1)
        result = bias(samples, reference)
        scores.append(result.squared / result.squared_error)
        projections.append((result.projection - 1) / result.projection_error)
    # Scores in standard errors: their mean is near zero and their spread near one.
    assert abs(np.mean(scores)) < 0.35
    assert 0.7 < np.std(scores) < 1.3
    assert 0.7 < np.std(projections) < 1.4
    assert np.mean(np.array(scores) > 3) < 0.05


def test_a_bias_of_a_tenth_is_found_and_measured():
    samples, reference = noisy(1.1 * TARGET, 4000), noisy(TARGET, 4000, seed=1)
    result = bias(samples, reference)
    assert result.significant
    assert abs(result.squared - 0.1**2) < 3 * result.squared_error < 0.1**2
    np.testing.assert_allclose(result.magnitude, np.sqrt(result.squared))
    assert abs(result.projection - 1.1) < 3 * result.projection_error
    assert not bias(noisy(TARGET, 4000), reference).significant


def test_numbers_are_those_of_their_formulas_for_an_exact_reference():
    samples = noisy([1.0, 2.0, 2.0], 10)
    result = bias(samples, TARGET[None])
    mean = samples.mean(axis=0)
    np.testing.assert_allclose(result.projection, mean @ TARGET / 25)
    np.testing.assert_allclose(result.cosine, mean @ TARGET / (5 * np.linalg.norm(mean)))
    np.testing.assert_allclose(result.relative_error, np.linalg.norm(mean - TARGET) / 5)
    np.testing.assert_allclose(result.variance, samples.var(axis=0, ddof=1).sum() / 25)
    # Pairs of different samples, one by one.
    pairs = [
        (x - TARGET) @ (y - TARGET)
        for i, x in enumerate(samples)
        for j, y in enumerate(samples)
        if i != j
    ]
    np.testing.assert_allclose(result.squared, np.mean(pairs) / 25)


def test_huge_numbers_and_samples_that_are_not_finite_do_no_harm():
    samples = 1e200 * noisy(TARGET, 50)
    samples[3] = np.nan
    result = bias(samples, 1e200 * noisy(TARGET, 50, seed=1))
    np.testing.assert_allclose(result.nonfinite, 1 / 50)
    assert abs(result.projection - 1) < 4 * result.projection_error
    lost = bias(np.full((5, 3), np.nan), TARGET[None])
    assert lost.nonfinite == 1
    assert np.isnan(lost.squared)
    assert not lost.significant


def test_relative_noise_is_the_standard_error_of_the_mean():
    samples = noisy(TARGET, 400)
    error = np.sqrt(samples.var(axis=0, ddof=1).sum() / 400)
    np.testing.assert_allclose(
        relative_noise(samples), error / np.linalg.norm(samples.mean(axis=0))
    )
    assert np.isnan(relative_noise(samples[:1]))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"bias: samples \(1, 3\)"):
        bias(TARGET[None], TARGET[None])
    with pytest.raises(ValueError, match="bias: samples"):
        bias(noisy(TARGET, 5), np.zeros((3, 2)))
