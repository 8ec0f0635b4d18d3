import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks, golden

# The published solver stops near the optimum: `test_no_direction_of_the_ball_is_better` is exact.
BARS = {"cagrad": 1e-3, "cagrad_wide": 1e-4}


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published(BARS)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published(BARS, ("conflict", "agreement", "2x5", "3x10", "5x20"))


@pytest.mark.usefixtures("x64")
def test_no_direction_of_the_ball_is_better():
    """Weak duality: for convex w the worst product is at most w·(J ḡ) + c |ḡ| |Jᵀ w|."""
    matrix, c = golden.jacobian("5x20"), 0.5
    aggregator = aggregators.cagrad(c=c)
    found = np.asarray(jax.jit(aggregator.aggregate)(jnp.asarray(matrix)))
    mean = matrix.mean(axis=0)
    radius = c * np.linalg.norm(mean)
    np.testing.assert_allclose(np.linalg.norm(found - mean), radius, rtol=1e-10)
    # The convex weights are those by which the direction differs from the mean.
    extra = np.linalg.lstsq(matrix.T, found - mean)[0]
    assert extra.min() > -1e-9
    w = extra / extra.sum()
    bound = w @ matrix @ mean + radius * np.linalg.norm(w @ matrix)
    worst = (matrix @ found).min()
    np.testing.assert_allclose(worst, bound, rtol=1e-9)
    assert worst > (matrix @ np.array(golden.GOLDEN["5x20"]["cagrad"])).min() - 1e-9


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_ball_of_no_radius_leaves_the_mean():
    matrix = checks.some_jacobian()
    found = jax.jit(aggregators.cagrad(c=0.0).aggregate)(matrix)
    np.testing.assert_allclose(found, matrix.mean(axis=0), rtol=1e-12)


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_the_solution():
    checks.assert_derivative(aggregators.cagrad())


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.cagrad())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="cagrad: c must be at least 0"):
        aggregators.cagrad(c=-0.5)
