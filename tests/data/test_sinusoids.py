import jax
import numpy as np
import pytest

from metaopt.data import sinusoids
from tests.helpers import standard_errors


def test_every_example_is_a_sinusoid():
    # A sin(x - φ) = a sin x - b cos x: linear least squares recovers A and φ without residual.
    pool = sinusoids(jax.random.key(0), num_curves=400, points_per_curve=8)
    assert pool.inputs.shape == pool.labels.shape == (400, 8, 1)
    x, y = (np.asarray(part, np.float64)[..., 0] for part in pool)
    coefficients = np.array(
        [
            np.linalg.lstsq(np.stack([np.sin(u), -np.cos(u)], 1), v, rcond=None)[0]
            for u, v in zip(x, y, strict=True)
        ]
    )
    fitted = coefficients[:, :1] * np.sin(x) - coefficients[:, 1:] * np.cos(x)
    np.testing.assert_allclose(fitted, y, atol=2e-5)
    amplitude = np.hypot(*coefficients.T)
    phase = np.arctan2(coefficients[:, 1], coefficients[:, 0])
    assert amplitude.min() > 0.0999
    assert amplitude.max() < 5.0001
    assert phase.min() > -1e-3
    assert standard_errors(amplitude, 2.55) < 4
    assert standard_errors(phase, np.pi / 2) < 4
    assert standard_errors(x.ravel(), 0) < 4
    assert standard_errors(x.ravel() ** 2, 25 / 3) < 4


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="sinusoids: num_curves=0 is below 1"):
        sinusoids(jax.random.key(0), num_curves=0, points_per_curve=2)
