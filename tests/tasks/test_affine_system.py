import math

import jax
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors


def pendulum(x, w):
    """The oscillator's output, written out."""
    drag = x[1] * abs(x[1])
    forces = w[0] * math.sin(x[0]) + w[1] * drag + w[2] * x[0] ** 3 / 8
    return [forces + math.cos(2 * x[1])]


def field(x, w):
    """The field of the charges, one at a time."""
    total = np.zeros(2)
    places = [(0, 0), (1.5, 1.5), (1.5, -1.5), (-1.5, 1.5), (-1.5, -1.5)]
    for charge, place in zip([1, *w], places, strict=True):
        offset = np.asarray(x) - np.asarray(place)
        total += charge * offset / (offset @ offset + 0.25) ** 1.5
    return total


@pytest.mark.parametrize(
    ("make", "expected"), [(tasks.oscillator, pendulum), (tasks.point_charges, field)]
)
def test_measurements_are_those_of_the_system(x64, make, expected):
    system = make()
    pool = tasks.environment_pool(
        system, jax.random.key(0), num_environments=3, num_points=4, noise=0.0
    )
    assert pool.inputs.shape == (3, 4, system.num_inputs)
    assert pool.parameters.shape == (3, system.num_parameters)
    for inputs, labels, parameters in zip(*map(np.asarray, pool), strict=True):
        exact = [expected(x, parameters) for x in inputs]
        np.testing.assert_allclose(labels, exact, rtol=1e-12, atol=1e-14)


def test_draws_fill_their_ranges_and_noise_has_its_scale():
    system = tasks.oscillator()
    sizes = {"num_environments": 500, "num_points": 4}
    make = jax.jit(lambda key, noise: tasks.environment_pool(system, key, noise=noise, **sizes))
    noisy, exact = (make(jax.random.key(0), noise) for noise in (0.3, 0.0))
    # Uniform in ±r: second moment r²/3, fourth r⁴/5.
    for draws, limit in ((exact.inputs, 2.0), (exact.parameters, 1.5)):
        scaled = np.asarray(draws).reshape(len(draws), -1) / limit
        moments = np.concatenate([scaled, scaled**2, scaled**4], axis=1)
        size = scaled.shape[1]
        expected = np.repeat([0, 1 / 3, 1 / 5], size)
        assert standard_errors(moments, expected) < 4.5
        assert standard_errors(moments, np.repeat([0, 0.4, 1 / 5], size)) > 4.5
    noise = np.asarray(noisy.labels - exact.labels).reshape(-1, 1)
    assert standard_errors(noise**2, [0.09]) < 4
    assert standard_errors(noise**2, [0.11]) > 4


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="environment_pool: num_points=0"):
        tasks.environment_pool(
            tasks.oscillator(), jax.random.key(0), num_environments=1, num_points=0
        )
