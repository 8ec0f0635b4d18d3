import jax
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published({"imtl_g": 1e-9})


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published({"imtl_g": 1e-9}, ("conflict", "agreement", "2x5", "3x10", "5x20"))


@pytest.mark.usefixtures("x64")
def test_its_projections_on_all_gradients_are_the_same():
    matrix = checks.some_jacobian()
    update = np.asarray(jax.jit(aggregators.imtl_g().aggregate)(matrix))
    projections = np.asarray(matrix) @ update / np.linalg.norm(matrix, axis=1)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_central_differences():
    checks.assert_derivative(aggregators.imtl_g())


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.imtl_g())
