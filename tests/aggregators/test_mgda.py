import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published({"mgda": 1e-9})


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published({"mgda": 1e-9}, ("conflict", "agreement", "2x5", "3x10", "5x20"))


@pytest.mark.usefixtures("x64")
def test_of_two_gradients_it_finds_the_point_next_to_zero():
    a, b = np.array([2.0, 0.0, 1.0]), np.array([0.0, 1.0, -1.0])
    t = (a @ a - a @ b) / ((a - b) @ (a - b))
    found = jax.jit(aggregators.mgda().aggregate)(jnp.array([a, b]))
    np.testing.assert_allclose(found, a + t * (b - a), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_with_many_steps_it_satisfies_the_optimality_conditions():
    matrix = checks.some_jacobian()
    gramian = aggregators.gramian(matrix)
    weights = jax.jit(aggregators.mgda(num_steps=20_000, tol=0.0).weights)(gramian)
    products = np.asarray(gramian @ weights)
    square = float(weights @ products)
    assert square > 0.01
    assert products.min() > (1 - 1e-3) * square


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_the_steps():
    checks.assert_derivative(aggregators.mgda(tol=0.0, num_steps=20))


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.mgda())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_steps": 0}, "num_steps must be at least 1"), ({"tol": -0.1}, "tol must be at least 0")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        aggregators.mgda(**settings)
