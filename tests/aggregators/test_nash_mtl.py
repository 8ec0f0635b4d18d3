import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks

# The published sequence of programmes stops where G α - 1/α is below 1e-3.
BARS = {"nash_mtl": 3e-4, "nash_mtl_clipped": 3e-4}


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published(BARS)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published(BARS, ("conflict", "agreement", "2x5", "3x10", "5x20"))


@pytest.mark.usefixtures("x64")
def test_it_solves_the_bargaining_equations():
    matrix = checks.some_jacobian()
    gramian = np.asarray(aggregators.gramian(matrix))
    aggregator = aggregators.nash_mtl(max_norm=10.0, ridge=0.0)
    alpha = np.asarray(jax.jit(aggregator.weights)(jnp.asarray(gramian)))
    assert (alpha > 0).all()
    np.testing.assert_allclose(gramian @ alpha, 1 / alpha, rtol=1e-10)
    update = jax.jit(aggregator.aggregate)(matrix)
    np.testing.assert_allclose(update, alpha @ np.asarray(matrix), rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(update), np.sqrt(3), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_scales_of_the_objectives_do_not_matter():
    matrix, scales = checks.some_jacobian(), jnp.array([0.1, 1.0, 30.0])[:, None]
    function = jax.jit(aggregators.nash_mtl(ridge=0.0).aggregate)
    np.testing.assert_allclose(function(matrix * scales), function(matrix), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(function(matrix)), 1.0, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_the_solution():
    checks.assert_derivative(aggregators.nash_mtl())


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.nash_mtl())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="nash_mtl: max_norm must be at least 0"):
        aggregators.nash_mtl(max_norm=-1.0)
