import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metaopt.estimators import population_es
from metaopt.estimators._population_es import shaped
from metaopt.estimators._shared import perturbation
from tests.estimators import toys
from tests.helpers import standard_errors

SLOPE = jnp.array([1.0, -2.0, 0.5])


def noisy_linear(theta, data, key):
    return SLOPE @ theta + jax.random.normal(key)


def tasks_of_many_scales(theta, data, key):
    """A key stands for a task: its slope, scale and offset."""
    key_slope, key_scale = jax.random.split(key)
    scale = jnp.exp(2 * jax.random.normal(key_scale))
    return scale * (data[0] * (SLOPE + jax.random.normal(key_slope, (3,))) @ theta + 1) + data[1]


def repeat(meta_loss, theta, data, key, *, sigma, num_pairs, num_tasks):
    """The perturbations and the losses [pairs, arms, tasks] of one estimate."""
    _, key_eps, key_tasks = jax.random.split(key, 3)
    eps = [perturbation(theta, sigma, k) for k in jax.random.split(key_eps, num_pairs)]
    keys = jax.random.key_data(jax.random.split(key_tasks, num_tasks))
    losses = [
        [
            [meta_loss(theta + sign * e, data, jax.random.wrap_key_data(k)) for k in keys]
            for sign in (1, -1)
        ]
        for e in eps
    ]
    return np.array(eps), np.array(losses, np.float64)


@pytest.mark.parametrize("shaping", ["z_score", "ranks"])
@pytest.mark.parametrize("pooling", ["mean", "median"])
def test_repeats_its_formula_in_numpy(shaping, pooling):
    theta, data = jnp.array([0.3, -0.2, 0.1]), (0.3, 0.1)
    settings = {"sigma": 0.5, "num_pairs": 3, "num_tasks": 4}
    estimator = population_es(tasks_of_many_scales, shaping=shaping, pooling=pooling, **settings)
    actual = jax.jit(estimator.estimate)(theta, (), data, jax.random.key(0))[0]
    eps, losses = repeat(tasks_of_many_scales, theta, data, jax.random.key(0), **settings)
    flat = losses.reshape(6, 4)
    if shaping == "z_score":
        flat = scipy.stats.zscore(flat, axis=0)
    else:
        flat = (scipy.stats.rankdata(flat, axis=0) - 1) / 5 - 0.5
    pooled = getattr(np, pooling)(flat, axis=1).reshape(3, 2)
    slopes = (pooled[:, 0] - pooled[:, 1]) / (2 * 0.25)
    np.testing.assert_allclose(actual.grad, np.mean(slopes[:, None] * eps, axis=0), rtol=1e-3)
    np.testing.assert_allclose(actual.loss, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        actual.info.spread, np.abs(pooled[:, 0] - pooled[:, 1]).mean(), rtol=1e-3
    )


def test_ranks_of_pooled_losses_repeat_their_formula():
    theta, data = jnp.zeros(3), (1.0, 0.0)
    settings = {"sigma": 0.5, "num_pairs": 3, "num_tasks": 4}
    estimator = population_es(tasks_of_many_scales, ranks=2.0, **settings)
    actual = jax.jit(estimator.estimate)(theta, (), data, jax.random.key(0))[0].grad
    eps, losses = repeat(tasks_of_many_scales, theta, data, jax.random.key(0), **settings)
    pooled = scipy.stats.zscore(losses.reshape(6, 4), axis=0).mean(axis=1)
    ranked = ((scipy.stats.rankdata(pooled) - 1) / 5 - 0.5).reshape(3, 2)
    weights = 2.0 * (ranked[:, 0] - ranked[:, 1]) / (2 * 0.25)
    np.testing.assert_allclose(actual, np.mean(weights[:, None] * eps, axis=0), rtol=1e-4)


def test_is_unbiased_without_shaping():
    estimator = population_es(noisy_linear, sigma=0.1, num_pairs=2, num_tasks=2, shaping="none")

    def grad(key):
        return estimator.estimate(jnp.zeros(3), (), (), key)[0].grad

    grads = jax.jit(jax.vmap(grad))(jax.random.split(jax.random.key(0), 5_000))
    assert standard_errors(grads, SLOPE) < 4.5
    assert standard_errors(grads, 1.1 * SLOPE) > 4.5


def test_candidates_share_tasks_and_keys():
    # With noise of their own, of size one, z-scores would not tell the candidates' slopes.
    estimator = population_es(noisy_linear, sigma=1e-2, num_pairs=64, num_tasks=2)
    grad = jax.jit(estimator.estimate)(jnp.zeros(3), (), (), jax.random.key(1))[0].grad
    cosine = grad @ SLOPE / jnp.linalg.norm(grad) / jnp.linalg.norm(SLOPE)
    assert cosine > 0.9


@pytest.mark.compiles
def test_shaped_losses_ignore_the_scale_and_offset_of_each_task(x64):
    losses = jax.random.normal(jax.random.key(0), (3, 2, 4))
    scales, offsets = jnp.array([1e-6, 1.0, 10.0, 1e6]), jnp.array([0.0, 1.0, -5.0, 1e3])
    other = losses * scales[None, None] + offsets[None, None]
    for shaping in ("z_score", "ranks"):
        np.testing.assert_allclose(shaped(other, shaping), shaped(losses, shaping), rtol=1e-8)
    assert np.abs(shaped(other, "none") - shaped(losses, "none")).max() > 1


@pytest.mark.compiles
def test_a_loss_that_is_not_finite_is_the_worst_of_its_task_alone():
    losses = jax.random.normal(jax.random.key(0), (3, 2, 4))
    broken = losses.at[1, 0, 2].set(jnp.nan)
    worst = jnp.max(jnp.where(jnp.isfinite(broken[..., 2]), broken[..., 2], -jnp.inf))
    mended = losses.at[1, 0, 2].set(worst)
    np.testing.assert_array_equal(shaped(broken, "z_score"), shaped(mended, "z_score"))
    hopeless = losses.at[..., 1].set(jnp.nan)
    np.testing.assert_array_equal(shaped(hopeless, "z_score")[..., 1], np.zeros((3, 2)))

    def sometimes_nan(theta, data, key):
        return jnp.where(theta[0] > 0, jnp.nan, jnp.sum(theta))

    estimate, _ = population_es(sometimes_nan, num_pairs=4).estimate(
        jnp.zeros(3), (), (), jax.random.key(2)
    )
    assert estimate.info.nonfinite == 1
    assert np.isfinite(estimate.grad).all()


def test_runs_a_system_and_counts_its_steps():
    estimator = population_es(toys.linear(), sigma=0.1, horizon=5, num_pairs=3, num_tasks=2)
    estimate, _ = jax.jit(estimator.estimate)(jnp.zeros(2), (), (), jax.random.key(0))
    assert estimate.info.inner_steps == 2 * 3 * 2 * 5
    assert (estimate.grad != 0).all()


def test_one_pair_on_one_task_is_the_sign_of_its_difference():
    theta, key = jnp.zeros(3), jax.random.key(0)
    estimator = population_es(noisy_linear, num_pairs=1, num_tasks=1, sigma=0.1)
    actual = estimator.estimate(theta, (), (), key)[0].grad
    eps, losses = repeat(
        noisy_linear, theta, (), jax.random.key(0), sigma=0.1, num_pairs=1, num_tasks=1
    )
    # The z-scores of two numbers are ±1.
    sign = np.sign(losses[0, 0, 0] - losses[0, 1, 0])
    np.testing.assert_allclose(actual, 2 * sign * eps[0] / (2 * 0.01), rtol=1e-5)


def test_bad_settings_are_refused():
    for settings, message in (
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"ranks": -1.0}, "ranks must be positive"),
        ({"num_pairs": 0}, "num_pairs must be an integer of at least 1"),
        ({"shaping": "log"}, "shaping='log' is unknown"),
        ({"pooling": "max"}, "pooling='max' is unknown"),
        ({"horizon": 3}, "has its own horizon"),
    ):
        with pytest.raises(ValueError, match=f"population_es: .*{message}"):
            population_es(noisy_linear, **settings)
    with pytest.raises(ValueError, match="a System needs horizon="):
        population_es(toys.linear())
