import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks

BARS = {"aligned_mtl": 1e-9, "aligned_mtl_median": 1e-9, "aligned_mtl_rmse": 1e-9}


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published(BARS)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published(BARS, ("conflict", "agreement", "2x5", "3x10", "5x20"))


@pytest.mark.usefixtures("x64")
def test_its_weights_combine_orthogonal_gradients_of_equal_length():
    matrix = np.asarray(checks.some_jacobian())
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    aligned = values.min() * left @ right
    preference = np.array([0.5, 0.3, 0.2])
    aggregator = aggregators.aligned_mtl(preference=jnp.asarray(preference))
    found = jax.jit(aggregator.aggregate)(jnp.asarray(matrix))
    np.testing.assert_allclose(found, preference @ aligned, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scale", ["min", pytest.param("rmse", marks=pytest.mark.slow)])
def test_its_derivative_is_that_of_central_differences(scale):
    checks.assert_derivative(aggregators.aligned_mtl(scale=scale))


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_right_where_eigenvalues_coincide():
    checks.assert_derivative(aggregators.aligned_mtl(scale="rmse"), 2 * jnp.eye(3, 4))


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.aligned_mtl())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="choose from"):
        aggregators.aligned_mtl(scale="max")
