from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.eval import baselines, cosine, log_grid, tune
from tests.eval.families import quadratic, sgd_losses

CURVATURES = (1.0, 9.0)


@pytest.mark.parametrize("metric", ["mean", "final"])
def test_the_best_learning_rate_of_gradient_descent_is_found(metric):
    grid, num_steps = (0.05, 0.1, 0.2, 0.4), 20
    result = tune(
        optax.sgd,
        quadratic(*CURVATURES),
        (),
        jax.random.key(0),
        num_steps=num_steps,
        grid=grid,
        num_seeds=2,
        num_eval_batches=1,
        metric=metric,
    )
    losses = np.array([sgd_losses(CURVATURES, rate, num_steps) for rate in grid])
    expected = losses[:, :-1].mean(1) if metric == "mean" else losses[:, -1]
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4)
    np.testing.assert_array_equal(result.failure_rate, [0, 0, 0, 1])
    if metric == "final":
        assert result.best == 2 / sum(CURVATURES)  # optimal for two eigenvalues
    assert result.best == grid[np.argmin(expected)]
    assert not result.at_edge


def test_an_optimum_at_the_edge_is_flagged_and_divergence_scores_worst():
    settings: dict[str, Any] = {"num_steps": 10, "num_seeds": 1, "num_eval_batches": 1}
    low = tune(optax.sgd, quadratic(1.0), (), jax.random.key(0), grid=(0.01, 0.1), **settings)
    assert low.at_edge
    assert low.best == 0.1
    wild = tune(optax.sgd, quadratic(1.0), (), jax.random.key(0), grid=(0.1, 1, 1e9), **settings)
    assert wild.best == 1
    assert not wild.at_edge
    assert np.isfinite(wild.scores).all()
    assert wild.scores[2] > 1e37


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": ()}, "increasing positive"),
        ({"grid": (0.1, 0.1)}, "increasing positive"),
        ({"grid": (0.0, 0.1)}, "increasing positive"),
        ({"metric": "best"}, "metric='best' is unknown"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tune(optax.sgd, quadratic(1.0), (), jax.random.key(0), num_steps=2, **settings)


def test_log_grid_has_half_decades():
    np.testing.assert_allclose(log_grid(-2, 0), [0.01, 0.01 * 10**0.5, 0.1, 0.1 * 10**0.5, 1])
    assert len(log_grid(-4, 1, per_decade=4)) == 21
    with pytest.raises(ValueError, match="low <= high"):
        log_grid(1, 0)


def test_cosine_warms_up_and_ends_at_zero():
    warm = jax.jit(lambda rate: jnp.stack([cosine(rate, 10, warmup_steps=2)(t) for t in range(11)]))
    expected = [0, 1.5] + [1.5 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
    np.testing.assert_allclose(warm(3.0), expected, atol=1e-6)
    with pytest.raises(ValueError, match="warmup_steps < num_steps"):
        cosine(1.0, 10, warmup_steps=10)


def sgd_momentum_by_hand(params, grads, rates):
    momentum = 0
    for grad, rate in zip(grads, rates, strict=True):
        momentum = 0.9 * momentum + grad
        params = params - rate * momentum
    return params


def adam_by_hand(params, grads, rates, weight_decay=0.0):
    first = second = 0
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        direction = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        params = params - rate * (direction + weight_decay * params)
    return params


def adamw_by_hand(params, grads, rates):
    return adam_by_hand(params, grads, rates, weight_decay=0.02)


@pytest.mark.parametrize(
    ("index", "by_hand"), [(0, sgd_momentum_by_hand), (1, adam_by_hand), (2, adamw_by_hand)]
)
def test_baselines_take_the_textbook_steps_at_traced_learning_rates(index, by_hand):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=3), rng.normal(size=(4, 3))
    baseline = baselines(6, weight_decay=0.02)[index]

    @jax.jit
    @jax.vmap
    def run(learning_rate):
        optimizer = baseline.make(learning_rate)
        params = jnp.asarray(start, jnp.float32)
        state = optimizer.init(params)
        for grad in jnp.asarray(grads, jnp.float32):
            updates, state = optimizer.update(grad, state, params)
            params = optax.apply_updates(params, updates)
        return params

    decay = 0.5 * (1 + np.cos(np.pi * np.arange(4) / 6))
    expected = [by_hand(start, grads, rate * decay) for rate in (0.1, 0.5)]
    np.testing.assert_allclose(run(jnp.array([0.1, 0.5])), expected, rtol=2e-5, atol=1e-6)
    assert baseline.learning_rate is None


def test_baselines_refuse_a_warmup_as_long_as_the_run():
    with pytest.raises(ValueError, match="warmup_steps < num_steps"):
        baselines(5, warmup_steps=5)
