import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import unroll
from metaopt.estimators import backprop, es
from metaopt.estimators._es import _transform
from metaopt.estimators._shared import finite_or_zero, perturbation
from tests.estimators import toys
from tests.helpers import standard_errors

REFERENCE = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "reference"
SLOPE = jnp.array([1.0, -2.0, 0.5])


def noisy_linear(theta, data, key):
    return SLOPE @ theta + jax.random.normal(key)


def sample_grads(estimator, theta, *, num_samples):
    def grad(key):
        return estimator.estimate(theta, (), (), key)[0].grad

    return jax.jit(jax.vmap(grad))(jax.random.split(jax.random.key(0), num_samples))


def test_is_unbiased_on_a_noisy_linear_loss():
    grads = sample_grads(es(noisy_linear, sigma=0.1, num_tasks=2), jnp.zeros(3), num_samples=5_000)
    assert standard_errors(grads, SLOPE) < 4.5
    assert standard_errors(grads, 1.1 * SLOPE) > 4.5


def test_arms_share_their_randomness():
    # With independent noise the spread would be about one; shared noise leaves only σ.
    estimate, _ = es(noisy_linear, sigma=1e-3).estimate(jnp.zeros(3), (), (), jax.random.key(1))
    assert estimate.info.spread < 0.02


def test_estimates_the_gradient_of_the_smoothed_loss():
    # E[(x + e)⁴]' = 4x³ + 12xσ² for e ~ N(0, σ²): at σ = 1 far from the plain 4x³.
    def quartic(theta, data, key):
        return theta**4

    grads = sample_grads(es(quartic, sigma=1.0, num_tasks=1), jnp.array(0.5), num_samples=100_000)
    assert standard_errors(grads, 4 * 0.5**3 + 12 * 0.5) < 4
    assert standard_errors(grads, 4 * 0.5**3) > 4


@pytest.mark.compiles
def test_small_sigma_projects_the_exact_gradient_on_the_noise(x64):
    theta, key = jnp.array([0.3, -0.2]), jax.random.key(2)
    estimator = es(toys.nonlinear(), sigma=1e-4, horizon=5, num_tasks=3)
    actual = estimator.estimate(theta, (), (), key)[0].grad
    exact = backprop(toys.nonlinear(), horizon=5, num_tasks=1)
    slope = exact.estimate(theta, (), (), jax.random.key(3))[0].grad

    _, key_tasks = jax.random.split(jax.random.key(2))
    expected = []
    for key_task in jax.random.split(key_tasks, 3):
        eps = perturbation(theta, 1.0, jax.random.split(key_task)[0])
        expected.append(eps * (eps @ slope))
    np.testing.assert_allclose(actual, np.mean(expected, axis=0), rtol=1e-6)


def test_sign_ignores_the_scale_of_the_loss():
    def scaled(theta, data, key):
        return 1e4 * noisy_linear(theta, data, key)

    grads = [
        es(loss, sigma=0.1, sign=1.0).estimate(jnp.zeros(3), (), (), jax.random.key(4))[0].grad
        for loss in (noisy_linear, scaled)
    ]
    np.testing.assert_array_equal(grads[0], grads[1])


def test_one_length_is_drawn_for_all_tasks():
    estimator = es(toys.linear(), horizon=unroll.log_uniform(2, 50), num_tasks=4)
    run = jax.jit(lambda key: estimator.estimate(jnp.ones(2), (), (), key)[0])
    estimate = run(jax.random.key(5))
    steps = int(estimate.info.inner_steps)
    assert steps % 8 == 0
    # The losses of a linear system at θ ± e average to the loss at θ.
    system, theta = toys.linear(), jnp.ones(2)
    expected = unroll.meta_loss(system, horizon=steps // 8)(theta, (), jax.random.key(0))
    np.testing.assert_allclose(estimate.loss, expected, rtol=1e-5)


def test_a_task_that_is_not_finite_contributes_zero():
    def sometimes_nan(theta, data, key):
        return jnp.where(jax.random.bernoulli(key), jnp.nan, SLOPE @ theta)

    estimator = es(sometimes_nan, sigma=0.1, num_tasks=16)
    estimate, _ = estimator.estimate(jnp.ones(3), (), (), jax.random.key(6))
    assert 0 < estimate.info.nonfinite < 1
    assert np.all(np.isfinite(estimate.grad))
    assert np.isfinite(estimate.loss)
    grads = sample_grads(estimator, jnp.ones(3), num_samples=2_000)
    assert standard_errors(grads, SLOPE / 2) < 4.5


@pytest.mark.skipif(not REFERENCE.exists(), reason="reference vectors are not beside the checkout")
def test_repeats_the_reference_arithmetic_on_trajectory_means():
    reference = np.load(REFERENCE / "pes_grad_reference.npz")
    sigma = float(reference["std"])
    difference = reference["loss_pos"].mean(axis=0) - reference["loss_neg"].mean(axis=0)
    slopes = [finite_or_zero(_transform(d, 0.4, None))[0] for d in difference]
    for name in "ab":
        eps = reference[f"eps/{name}"]
        grad = np.mean([s * e / (2 * sigma**2) for s, e in zip(slopes, eps, strict=True)], axis=0)
        expected = reference[f"fulles_avg_clip0.4/grad/{name}"]
        np.testing.assert_allclose(grad, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("problem", "settings", "message"),
    [
        (noisy_linear, {"sigma": 0.0}, "sigma must be positive"),
        (noisy_linear, {"num_tasks": 0}, "num_tasks must be an integer"),
        (noisy_linear, {"clip": -1.0}, "clip must be positive"),
        (noisy_linear, {"horizon": 5}, "has its own horizon"),
        (toys.linear(), {}, "a System needs horizon="),
        (toys.linear(), {"horizon": 0}, "at least 1 step"),
    ],
)
def test_bad_settings_are_refused(problem, settings, message):
    with pytest.raises(ValueError, match=message):
        es(problem, **settings)
