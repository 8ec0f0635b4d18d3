import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from metaopt import tasks
from tests.helpers import relative_error, standard_errors


@pytest.mark.usefixtures("x64")
def test_value_gradient_and_hessian_are_scipys():
    family = tasks.rosenbrock(dim=4)
    task = family.sample(jax.random.key(0))
    x = family.init(task, jax.random.key(1))
    u = np.asarray(x - task.shift)

    def loss(x):
        return family.loss(x, task, (), jax.random.key(2))[0]

    np.testing.assert_allclose(loss(x), optimize.rosen(u), rtol=1e-12)
    assert relative_error(jax.grad(loss)(x), optimize.rosen_der(u)) < 1e-12
    assert relative_error(jax.hessian(loss)(x), optimize.rosen_hess(u)) < 1e-12
    np.testing.assert_allclose(loss(task.shift + 1), 0, atol=1e-28)


def test_the_reference_of_the_normaliser_is_the_mean_loss_over_starts():
    family = tasks.rosenbrock(dim=3, steepness=10.0)

    @jax.jit
    @jax.vmap
    def start(key):
        key_task, key_params, key_loss = jax.random.split(key, 3)
        task = family.sample(key_task)
        loss, _ = family.loss(family.init(task, key_params), task, (), key_loss)
        return loss, task.shift

    losses, shifts = start(jax.random.split(jax.random.key(0), 4000))
    expected = 2 * (68 / 15 * 10 + 7 / 3)
    assert standard_errors(losses, expected) < 4
    assert standard_errors(losses, 1.1 * expected) > 4
    assert standard_errors(shifts, np.zeros(3)) < 4.5
    assert standard_errors(shifts**2, np.ones(3)) < 4.5
    normalised = family.normalise(jnp.array(expected), None)
    np.testing.assert_allclose(normalised, np.log1p(1e-6), atol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="rosenbrock: dim=1 is below 2"):
        tasks.rosenbrock(dim=1)
    with pytest.raises(ValueError, match="rosenbrock: steepness=0 is not positive"):
        tasks.rosenbrock(steepness=0)
