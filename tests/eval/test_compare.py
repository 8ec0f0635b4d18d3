from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.eval import (
    Baseline,
    compare,
    envelope,
    iqm_interval,
    learning_curve,
    smooth,
    speedup_over,
    speedup_over_envelope,
)
from tests.eval.families import noisy_quadratic, quadratic, sgd_losses

CURVATURES = (0.5, 2.0)


@pytest.fixture(scope="module")
def fixed_rates():
    """Gradient descent at fixed learning rates: the reference, a faster and a diverging one."""
    contenders = [
        Baseline("slow", optax.sgd, 0.1),
        Baseline("fast", optax.sgd, 0.3),
        Baseline("wild", optax.sgd, 1e9),
    ]
    return compare(
        contenders,
        quadratic(*CURVATURES),
        (),
        jax.random.key(0),
        num_steps=40,
        num_seeds=2,
        num_eval_batches=1,
    )


@pytest.mark.parametrize(("index", "rate"), [(0, 0.1), (1, 0.3)])
def test_losses_and_speedups_of_gradient_descent(fixed_rates, index, rate):
    result = fixed_rates.results[index]
    losses = np.array(sgd_losses(CURVATURES, rate, 40))
    np.testing.assert_allclose(result.mean_loss, losses[:-1].mean(), rtol=1e-5)
    np.testing.assert_allclose(result.final_loss, losses[-1], rtol=1e-4)
    np.testing.assert_allclose(result.validation_loss, losses[-1], rtol=1e-4)
    target = smooth(np.array(sgd_losses(CURVATURES, 0.1, 39)))[-1]
    steps = 1 + np.argmax(smooth(losses[:-1]) <= target) if index else 40
    np.testing.assert_array_equal(result.steps_to_reference, [steps] * 2)
    np.testing.assert_allclose(result.speedup_iqm, 40 / steps, rtol=1e-12)
    assert not result.censored.any()
    assert (result.tuning, result.num_configurations, result.failure_rate) == (None, 1, 0)


def test_a_diverging_contender_is_reported_and_scores_zero(fixed_rates):
    wild = fixed_rates.results[2]
    assert wild.failure_rate == 1
    np.testing.assert_array_equal(wild.speedup, [0, 0])
    np.testing.assert_array_equal(wild.steps_to_reference, [41, 41])
    assert wild.censored.all()
    assert np.isfinite([wild.mean_loss, wild.final_loss, wild.validation_loss]).all()


@pytest.mark.compiles
def test_contenders_are_paired_and_tuning_seeds_are_not_reported():
    settings: dict[str, Any] = {
        "num_steps": 5,
        "num_seeds": 2,
        "num_tuning_seeds": 2,
        "num_eval_batches": 2,
    }
    contenders = [Baseline("tuned", optax.sgd), Baseline("fixed", optax.sgd, 0.1)]
    comparison = compare(
        contenders, noisy_quadratic(), (), jax.random.key(0), grid=(0.1,), **settings
    )
    tuned, fixed = comparison.results
    assert tuned.tuning is not None
    jax.tree.map(np.testing.assert_array_equal, tuned.curves, fixed.curves)
    assert fixed.speedup_iqm == (1, 1, 1)
    assert (tuned.num_configurations, tuned.learning_rate) == (1, 0.1)
    # On the same seeds the score of the chosen learning rate would be the reported mean loss.
    assert abs(tuned.mean_loss / tuned.tuning.scores[0] - 1) > 0.01


@pytest.mark.parametrize(
    ("contenders", "settings", "message"),
    [
        ([], {}, "must be some"),
        ([Baseline("a", optax.sgd), Baseline("a", optax.adam)], {}, "different names"),
        ([Baseline("a", optax.sgd)], {"reference": "b"}, "reference='b' is unknown"),
        ([Baseline("a", optax.sgd)], {"grid": (2.0, 1.0)}, "compare: grid"),
    ],
)
def test_bad_settings_are_refused(contenders, settings, message):
    with pytest.raises(ValueError, match=message):
        compare(contenders, quadratic(1.0), (), jax.random.key(0), num_steps=2, **settings)


RATES, NUM_STEPS = (0.005, 0.01, 0.02), 150


@pytest.fixture(scope="module")
def adam_on_two_sets_of_seeds():
    """Adam's losses, `[learning_rates, seeds, steps]`, twice; twice as long as will be judged."""

    @jax.jit
    def run(rates, key):
        def one(rate):
            return learning_curve(
                noisy_quadratic(curvatures=(0.2, 0.5, 1.0, 2.0)),
                optax.adam(rate),
                (),
                key,
                num_steps=2 * NUM_STEPS,
                num_seeds=24,
                num_eval_batches=1,
            ).normalised.train

        return jax.vmap(one)(rates)

    keys = jax.random.split(jax.random.key(0))
    return [jax.device_get(run(jnp.array(RATES), key)) for key in keys]


def test_adam_against_itself_on_new_seeds_scores_one(adam_on_two_sets_of_seeds):
    first, second = (losses[:, :, :NUM_STEPS] for losses in adam_on_two_sets_of_seeds)

    def interval(index):
        ratio = speedup_over(second[index], first[1]).ratio
        return iqm_interval(ratio[None], jax.random.key(1))

    same, faster = interval(1), interval(2)
    assert same.low <= 1 <= same.high
    assert faster.low > 1  # the test has power


def test_adam_against_its_envelope_on_new_seeds_scores_about_one(adam_on_two_sets_of_seeds):
    first, second = adam_on_two_sets_of_seeds
    levels = envelope(first)
    curves = smooth(second.mean(axis=1))[:, :NUM_STEPS]
    scores = speedup_over_envelope(curves[:, -1], levels, num_steps=NUM_STEPS)
    # The bounds that the metric's specification states for Adam at its best learning rate.
    assert 0.85 <= scores[np.argmin(curves[:, -1])] <= 1.15
