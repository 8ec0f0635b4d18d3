import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import (
    bernoulli_log_prob,
    noisy_rectifier,
    optimal_baseline,
    score_function,
    stochastic_times_smooth,
    straight_through,
)
from tests.helpers import standard_errors

UNITS, SAMPLES = 10, 200_000


def problem():
    """Weights and logits of ten units; the loss of a sample is (⟨w, h⟩ − 1)²."""
    rng = np.random.default_rng(0)
    return rng.normal(size=UNITS), rng.normal(size=UNITS)


def exact():
    """The gradient of the expected loss by the logits, and the best baselines: all 2ⁿ states."""
    w, a = problem()
    s = 1 / (1 + np.exp(-a))
    states = np.array(list(itertools.product([0.0, 1.0], repeat=UNITS)))
    probs = np.prod(np.where(states == 1, s, 1 - s), axis=1)
    losses = (states @ w - 1) ** 2
    weights = (states - s) ** 2
    baselines = probs @ (weights * losses[:, None]) / (probs @ weights)
    return probs @ ((states - s) * losses[:, None]), baselines


def losses_of(samples):
    return jnp.square(samples @ problem()[0].astype(samples.dtype) - 1)


@pytest.fixture(scope="module")
def gradients():
    """One gradient for each sample and estimator."""
    logits = jnp.asarray(problem()[1], jnp.float32)
    baselines = jnp.asarray(exact()[1], jnp.float32)

    def score(logits, key, baseline):
        sample = straight_through(jax.lax.stop_gradient(logits), key)
        log_prob = bernoulli_log_prob(logits, sample)
        return score_function(losses_of(sample), log_prob, baseline=baseline)

    functions = {
        "score": lambda a, key: score(a, key, 0.0),
        "baseline": lambda a, key: score(a, key, baselines),
        "identity": lambda a, key: losses_of(straight_through(a, key, slope="identity")),
        "sigmoid": lambda a, key: losses_of(straight_through(a, key)),
    }

    @jax.jit
    def run(key):
        keys = jax.random.split(key, len(functions))
        return {
            name: jax.vmap(jax.grad(f), (None, 0))(logits, jax.random.split(k, SAMPLES))
            for (name, f), k in zip(functions.items(), keys, strict=True)
        }

    return jax.tree.map(lambda x: np.asarray(x, np.float64), run(jax.random.key(0)))


def bias(grads):
    mean, truth = grads.mean(axis=0), exact()[0]
    return np.linalg.norm(mean - truth) / np.linalg.norm(truth)


def variance(grads):
    return grads.var(axis=0).sum()


def cosine(grads):
    mean, truth = grads.mean(axis=0), exact()[0]
    return mean @ truth / np.linalg.norm(mean) / np.linalg.norm(truth)


def test_score_functions_are_unbiased_and_a_baseline_lowers_their_variance(gradients):
    assert standard_errors(gradients["score"], exact()[0]) < 5
    assert standard_errors(gradients["baseline"], exact()[0]) < 5
    assert standard_errors(gradients["baseline"], 1.2 * exact()[0]) > 5
    assert bias(gradients["baseline"]) <= 0.03
    assert variance(gradients["baseline"]) <= 0.6 * variance(gradients["score"])


def test_straight_through_gradients_are_biased_but_point_the_right_way(gradients):
    assert cosine(gradients["sigmoid"]) >= 0.95
    assert variance(gradients["sigmoid"]) <= 0.1 * variance(gradients["score"])
    assert standard_errors(gradients["sigmoid"], exact()[0]) > 5
    # Without the slope of the sigmoid, too long.
    longer = np.linalg.norm(gradients["identity"].mean(axis=0)) / np.linalg.norm(exact()[0])
    assert longer > 2


def test_the_closed_form_of_the_expected_gradient_agrees_with_enumeration():
    w, a = problem()
    s = 1 / (1 + np.exp(-a))
    formula = s * (1 - s) * (w**2 * (1 - 2 * s) + 2 * (w @ s - 1) * w)
    np.testing.assert_allclose(exact()[0], formula, rtol=1e-10)


def test_running_averages_find_the_best_baselines_and_start_at_zero(x64):
    logits = jnp.asarray(problem()[1])
    functions = optimal_baseline(decay=0.9)
    state = functions.init(logits)
    assert (functions.value(state) == 0).all()

    @jax.jit
    @jax.vmap
    def runs(key):
        def step(state, data):
            drawn = jnp.broadcast_to(logits, (1000, UNITS))
            sample = straight_through(drawn, jax.random.wrap_key_data(data))
            return functions.update(state, logits, sample, losses_of(sample)), None

        # As raw numbers: mapped keys change their axes in a loop, which counts as using them.
        data = jax.random.key_data(jax.random.split(key, 50))
        return functions.value(jax.lax.scan(step, state, data)[0])

    found = runs(jax.random.split(jax.random.key(0), 32))
    assert standard_errors(found, exact()[1]) < 5
    assert standard_errors(found, 1.1 * exact()[1]) > 5
    # One sample at a time, by hand.
    sample, loss = jnp.asarray((problem()[1] > 0) * 1.0), jnp.array(3.0)
    state = functions.update(state, logits, sample, loss)
    weights = (sample - jax.nn.sigmoid(logits)) ** 2
    np.testing.assert_allclose(state.weighted, 0.1 * weights * 3.0, rtol=1e-12)
    np.testing.assert_allclose(functions.value(state), 3.0, rtol=1e-12)


def test_straight_through_values_are_samples_and_slopes_are_as_asked(x64):
    logits, key = jnp.linspace(-3, 3, 7), jax.random.key(0)
    s = 1 / (1 + np.exp(-np.linspace(-3, 3, 7)))
    for slope, expected in (("sigmoid", s * (1 - s)), ("identity", np.ones(7))):
        value, grad = jax.value_and_grad(
            lambda a: jnp.sum(straight_through(a, jax.random.clone(key), slope=slope))  # noqa: B023
        )(logits)
        np.testing.assert_allclose(grad, expected, rtol=1e-12)
        assert value == np.round(value)


def test_samples_times_smooth_have_mean_s_and_in_the_mean_its_slope():
    logits = jnp.linspace(-2, 2, 5)
    s = 1 / (1 + np.exp(-np.linspace(-2, 2, 5)))

    @jax.jit
    def run(keys):
        return jax.vmap(
            lambda key: jax.jvp(
                lambda a: stochastic_times_smooth(a, key), (logits,), (jnp.ones(5),)
            )
        )(keys)

    values, slopes = run(jax.random.split(jax.random.key(0), 50_000))
    assert standard_errors(values, s) < 4.5
    assert standard_errors(slopes, s * (1 - s)) < 4.5
    roots = np.sqrt(s)
    assert (np.isclose(values, 0) | np.isclose(values, roots)).all()
    # A unit that is silent has a gradient, too.
    np.testing.assert_allclose(slopes[values == 0].min(), (s * (1 - s) / 2).min(), rtol=1e-4)


def test_a_noisy_rectifier_is_the_rectifier_of_what_it_adds(x64):
    inputs, key = jnp.linspace(-2, 2, 9), jax.random.key(0)
    noise = jax.random.normal(jax.random.clone(key), (9,))
    value, slope = jax.jvp(lambda x: noisy_rectifier(x, key, sigma=0.5), (inputs,), (jnp.ones(9),))
    noisy = np.asarray(inputs) + 0.5 * np.asarray(noise)
    np.testing.assert_allclose(value, np.maximum(noisy, 0), rtol=1e-12)
    np.testing.assert_allclose(slope, noisy > 0)


def test_a_decay_of_one_is_refused():
    with pytest.raises(ValueError, match="decay must be in"):
        optimal_baseline(decay=1.0)
