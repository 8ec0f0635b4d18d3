import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.eval import tune_adaptation
from metaopt.eval._tune_adaptation import _steps_and_score, expected_improvement

OPTIMUM = 0.05


def bowl(theta, data, key, *, learning_rate):
    """Two tasks, best after 2 and after 4 of 6 steps, and at a rate of 0.05."""
    del data, key
    off = jnp.log(learning_rate / OPTIMUM) ** 2
    steps = (jnp.arange(7.0)[None] - jnp.array([2.0, 4.0])[:, None]) ** 2
    return theta + off + 0.1 * steps


def test_steps_are_the_mean_over_tasks_and_scores_are_taken_there():
    measures = np.array([[5.0, 1.0, 2.0, 4.0, 9.0], [5.0, 4.0, 4.0, 3.0, np.inf]])
    assert _steps_and_score(measures) == (2, 3.0)
    diverged = np.array([[1.0, np.nan, np.inf], [1.0, 0.5, np.nan]])
    steps, score = _steps_and_score(diverged)
    assert (steps, score) == (0, 1.0)


def test_expected_improvement_agrees_with_quadrature():
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    for mean, deviation, best in ((0.3, 0.7, 0.1), (-1.0, 0.2, 0.5), (2.0, 1.5, -1.0)):
        gain = np.maximum(best - (mean + deviation * x), 0)
        expected = np.trapezoid(gain * density, x)
        np.testing.assert_allclose(
            expected_improvement(mean, deviation, best), expected, rtol=1e-6, atol=1e-9
        )


@pytest.mark.compiles
def test_the_optimum_of_a_bowl_is_found_and_nearer_than_by_random_trials():
    choices = [
        tune_adaptation(
            bowl,
            {"learning_rate": (1e-4, 10.0)},
            jnp.array(1.0),
            (),
            jax.random.key(seed),
            num_trials=14,
            num_random=5,
        )
        for seed in range(3)
    ]
    for choice in choices:
        assert choice.best.num_steps == 3
        assert abs(np.log(choice.best.settings["learning_rate"] / OPTIMUM)) < 0.2
        assert len(choice.trials) == 14
        assert choice.best.score == min(trial.score for trial in choice.trials)
        first = min(trial.score for trial in choice.trials[:5])
        assert choice.best.score - 1.1 < 0.2 * (first - 1.1)


def test_two_settings_are_searched_and_divergence_is_survived():
    def curves(theta, data, key, *, learning_rate, decay):
        """A step diverges at high rates."""
        off = jnp.log10(learning_rate / 0.1) ** 2 + 0.3 * jnp.log10(decay / 1e-3) ** 2
        after = jnp.where(learning_rate > 1.0, jnp.nan, off + theta - 3)
        return jnp.stack([theta, after])[None] + 0 * data

    choice = tune_adaptation(
        curves,
        {"learning_rate": (1e-3, 100.0), "decay": (1e-5, 1e-1)},
        jnp.array(3.0),
        jnp.array(0.0),
        jax.random.key(0),
        num_trials=18,
        num_random=6,
    )
    assert choice.best.num_steps == 1
    assert choice.best.score < 0.15
    assert set(choice.best.settings) == {"learning_rate", "decay"}
    assert any(trial.num_steps == 0 and trial.score == 3.0 for trial in choice.trials)


def test_a_search_where_all_diverges_still_ends():
    choice = tune_adaptation(
        lambda theta, data, key, *, rate: jnp.full((2, 3), jnp.nan) * rate,
        {"rate": (0.1, 1.0)},
        jnp.array(0.0),
        (),
        jax.random.key(0),
        num_trials=3,
        num_random=1,
    )
    assert choice.best.score == np.inf


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({}, {}, "has no setting"),
        ({"rate": (0.0, 1.0)}, {}, r"space\['rate'\]=\(0.0, 1.0\) must be positive and increasing"),
        ({"rate": (1.0, 1.0)}, {}, "must be positive and increasing"),
        ({"rate": (0.1, 1.0)}, {"num_random": 0}, "need 1 <= num_random <= num_trials"),
        ({"rate": (0.1, 1.0)}, {"num_trials": 2}, "need 1 <= num_random <= num_trials"),
    ],
)
def test_bad_settings_are_refused(space, settings, message):
    with pytest.raises(ValueError, match=message):
        tune_adaptation(bowl, space, jnp.array(0.0), (), jax.random.key(0), **settings)
