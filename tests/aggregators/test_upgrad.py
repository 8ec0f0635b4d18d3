import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks, golden


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published({"upgrad": 1e-6, "upgrad_preference": 1e-6})


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    bars = {"upgrad": 1e-6, "upgrad_preference": 1e-6}
    checks.assert_as_published(bars, ("conflict", "agreement", "2x5", "3x10", "5x20"))


def test_the_published_vectors_are_those_of_the_documentation():
    vector = golden.GOLDEN["conflict"]["upgrad"]
    np.testing.assert_allclose(vector, [0.292902, 1.90035208, 1.90035208], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_without_a_ridge_it_conflicts_with_no_gradient():
    matrices = jax.random.normal(jax.random.key(0), (50, 5, 8))
    matrices = matrices.at[:, 0].multiply(10)
    found = jax.jit(jax.vmap(aggregators.upgrad(ridge=0.0).aggregate))(matrices)
    products = np.einsum("kij,kj->ki", matrices, found)
    assert (products.min(axis=1) >= -1e-9 * np.abs(products).max(axis=1)).all()
    means = np.einsum("kij,kj->ki", matrices, matrices.mean(axis=1))
    assert (means.min(axis=1) < 0).any()


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_the_programmes():
    checks.assert_derivative(aggregators.upgrad())


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.upgrad())


def test_gradients_that_agree_are_averaged():
    matrix = jnp.array([[1.0, 2.0, 0.5], [2.0, 1.0, 0.0]])
    np.testing.assert_allclose(
        aggregators.upgrad().aggregate(matrix), matrix.mean(axis=0), rtol=1e-6
    )


def _descend(aggregator, num_steps=500):
    """Both objectives along the way to (1, 1), one of them much steeper."""

    def losses(x):
        steep = 0.5 * jnp.sum(jnp.array([100.0, 1.0]) * x**2)
        return jnp.stack([steep, 0.5 * jnp.sum((x - 1) ** 2)])

    def step(x, _):
        value, jacobian = aggregators.value_and_jacobian(losses)(x)
        return x - 0.005 * aggregator.aggregate(jacobian), value

    last, values = jax.jit(lambda x: jax.lax.scan(step, x, None, length=num_steps))(
        jnp.array([0.5, 2.0])
    )
    return np.concatenate([np.asarray(values), np.asarray(losses(last))[None]])


@pytest.mark.usefixtures("x64")
def test_no_objective_rises_by_much_where_it_rises_under_the_mean():
    ours, mean = _descend(aggregators.upgrad()), _descend(aggregators.mean())
    assert np.diff(ours, axis=0).max() <= 0.02
    assert np.diff(mean, axis=0).max() >= 0.05
    assert ours[-1, 1] < mean[-1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preference": jnp.ones((2, 1))}, "preference must be a vector"),
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"norm_eps": -1.0}, "norm_eps must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        aggregators.upgrad(**settings)


def test_a_preference_of_another_length_is_refused():
    with pytest.raises(ValueError, match="for 2 objectives"):
        aggregators.upgrad(preference=jnp.ones(3)).aggregate(jnp.ones((2, 4)))
