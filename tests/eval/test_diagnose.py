import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from metaopt import core, eval
from metaopt.core import StepInfo, System
from tests.estimators import toys

THETA = jnp.array([0.3, -0.2])
SETTINGS = {"num_samples": 16, "num_reference": 8, "num_tasks": 4, "num_points": 21}


def cubic_map():
    """Descent on a double well with a step of 1.8: chaotic."""

    def init(theta, data, key, *, num_steps=None):
        return jax.random.uniform(key, theta.shape, theta.dtype, -1, 1)

    def step(theta, state, data, key):
        state = state - jnp.exp(theta) * (state**3 - state)
        return state, StepInfo(jnp.sum((state**2 - 1) ** 2), jnp.array(False))

    return System(init, step)


def run(system, theta, names, horizons, **settings):
    sigma = settings.pop("sigma", 0.1)
    make = eval.standard_estimators(system, names, sigma=sigma, num_tasks=4)
    settings = {**SETTINGS, "sigma": sigma, "horizons": horizons, **settings}
    return eval.diagnose(system, make, theta, (), jax.random.key(0), **settings)


@pytest.fixture(scope="module")
def linear():
    return run(toys.linear(), THETA, ("backprop", "truncated_backprop", "pes"), (10,))


@pytest.mark.compiles
def test_biases_are_those_of_the_closed_form(linear):
    exact, truncated, persistent = linear.estimators
    full, short = (np.asarray(toys.linear_gradient(k), np.float64) for k in (10, 2))
    expected = np.linalg.norm(short - full) / np.linalg.norm(full)
    assert truncated.bias.significant
    np.testing.assert_allclose(truncated.bias.magnitude, expected, rtol=1e-4)
    np.testing.assert_allclose(truncated.bias.projection, short @ full / (full @ full), rtol=1e-4)
    assert exact.bias.relative_error < 1e-5
    assert not exact.bias.significant
    assert not persistent.bias.significant
    assert abs(persistent.bias.projection - 1) < 4 * persistent.bias.projection_error
    (level,) = linear.horizons
    assert level.reference == "backprop"
    np.testing.assert_allclose(level.norm, np.linalg.norm(full), rtol=1e-5)
    assert level.exponent < 0.1
    assert persistent.cost == pytest.approx(persistent.bias.variance * persistent.seconds)
    assert [row.estimates_per_sample for row in linear.estimators] == [1, 5, 5]


@pytest.mark.compiles
def test_advice_names_the_exact_estimator_and_the_biased_one(linear):
    text = " ".join(eval.recommend(linear))
    assert "Horizon 10: use backprop; its samples do not vary." in text
    assert "truncated_backprop is biased at horizon 10" in text
    assert "pes is biased" not in text
    assert "chaotic" not in text


@pytest.mark.compiles
def test_reports_are_complete(linear, tmp_path):
    console = Console(width=80, record=True, file=io.StringIO())
    with console.capture() as capture:
        console.print(eval.table(linear))
    lines = capture.get()
    assert "truncated_backprop" in lines
    assert "reference exact, by backpropagation" in lines
    record = json.loads(json.dumps(eval.to_json(linear)))
    assert [row["name"] for row in record["estimators"]] == [r.name for r in linear.estimators]
    assert record["recommendation"] == eval.recommend(linear)
    assert len(record["slices"]) == 4
    # A linear loss is monotone along every line.
    assert all(piece["roughness"] < 1.01 for piece in record["slices"])
    again, _ = eval.figure(record, tmp_path / "again", title="linear")
    png, svg = eval.figure(linear, tmp_path / "diagnosis", title="linear")
    assert png.read_bytes() == again.read_bytes()
    assert svg.stat().st_size > 0


@pytest.mark.compiles  # Two horizons.
def test_chaos_is_found_and_backpropagation_advised_against():
    diagnosis = run(
        cubic_map(),
        jnp.log(jnp.array([1.8, 1.75])),
        ("backprop", "es"),
        (2, 40),
        sigma=0.02,
        num_reference=32,
    )
    short, long = diagnosis.horizons
    assert long.reference == "es"
    assert long.exact_noise > 0.5
    assert short.exponent * 2 < 3
    assert long.exponent * 40 > 3
    near = next(piece for piece in diagnosis.slices if piece.direction == "random")
    assert near.roughness > 2
    rows = {(row.name, row.horizon): row for row in diagnosis.estimators}
    assert rows["backprop", 40].bias.variance > 1e3 * rows["es", 40].bias.variance
    text = " ".join(eval.recommend(diagnosis))
    assert "Inner training is chaotic from horizon 40 on" in text
    assert "Horizon 40: use es" in text
    assert "compared with that of the loss smoothed at sigma=0.02" in text


def test_a_bilevel_problem_takes_three_lines():
    problem = core.BilevelProblem(
        init=lambda key: jnp.zeros(2),
        inner_loss=lambda params, theta, data, key: jnp.sum((params - theta) ** 2),
        outer_loss=lambda params, theta, data, key: jnp.sum((params - data) ** 2),
    )
    system = core.bilevel_training(problem, optax.sgd(0.25))
    names = eval.standard_estimators(system, ("backprop", "forward"))
    diagnosis = eval.diagnose(
        system, names, THETA, jnp.ones(2), jax.random.key(1), horizons=(5,), **SETTINGS
    )
    shrink = 1 - 0.5 ** np.arange(1, 6)
    expected = np.mean([2 * s * (s * np.asarray(THETA) - 1) for s in shrink], axis=0)
    np.testing.assert_allclose(diagnosis.horizons[0].norm, np.linalg.norm(expected), rtol=1e-5)
    # A difference of the parameters halves with each step.
    np.testing.assert_allclose(diagnosis.horizons[0].exponent, np.log(0.5), rtol=1e-5)


def test_a_gradient_known_otherwise_serves_as_the_reference():
    diagnosis = run(
        toys.linear(),
        THETA,
        ("backprop",),
        (4,),
        reference=lambda horizon: 0.5 * toys.linear_gradient(horizon),
        num_points=0,
    )
    (row,), (level,) = diagnosis.estimators, diagnosis.horizons
    np.testing.assert_allclose(row.bias.projection, 2, rtol=1e-5)
    assert level.reference == "given"
    assert diagnosis.slices == ()
    assert "known to" not in eval.to_json(diagnosis)["recommendation"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizons": ()}, "at least one estimator and one horizon"),
        ({"horizons": (0,)}, "must be at least 1"),
        ({"num_samples": 2}, "num_samples must be at least 4"),
        ({"reference": "exact"}, "reference='exact' is unknown"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"diagnose: .*{message}"):
        run(toys.linear(), THETA, ("backprop",), **{"horizons": (4,), **changes})


def test_other_problems_and_names_are_refused():
    with pytest.raises(TypeError, match="needs a System, got a function"):
        eval.diagnose(
            lambda theta: theta, {"es": None}, THETA, (), jax.random.key(0), horizons=(2,)
        )
    with pytest.raises(ValueError, match="standard_estimators: 'magic' is unknown"):
        eval.standard_estimators(toys.linear(), ("magic",))
