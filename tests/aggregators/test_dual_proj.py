import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published({"dual_proj": 1e-6})


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published(
        {"dual_proj": 1e-6}, ("conflict", "agreement", "2x5", "3x10", "5x20")
    )


@pytest.mark.usefixtures("x64")
def test_two_gradients_are_projected_on_the_plane_of_the_one_the_mean_offends():
    matrix = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    mean, offended = matrix.mean(axis=0), matrix[0]
    expected = mean - mean @ offended / (offended @ offended) * offended
    found = jax.jit(aggregators.dual_proj(ridge=0.0).aggregate)(jnp.asarray(matrix))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_the_programme():
    matrix = checks.some_jacobian().at[0].multiply(-2)
    checks.assert_derivative(aggregators.dual_proj(), matrix)


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.dual_proj())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="dual_proj: ridge must be at least 0"):
        aggregators.dual_proj(ridge=-1.0)
