import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import relative_error, standard_errors


@pytest.mark.usefixtures("x64")
def test_loss_gradient_and_hessian_are_those_of_the_matrix():
    family = tasks.quadratic(dim=4, min_eig=0.1, max_eig=3.0)
    task = family.sample(jax.random.key(0))
    hessian = np.asarray(task.basis) @ np.diag(task.eigenvalues) @ np.asarray(task.basis).T
    x = np.asarray(family.init(task, jax.random.key(1)))
    error = x - np.asarray(task.optimum)

    def loss(x):
        return family.loss(x, task, (), jax.random.key(2))[0]

    np.testing.assert_allclose(loss(x), 0.5 * error @ hessian @ error, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(loss)(x), hessian @ error, rtol=1e-10)
    np.testing.assert_allclose(jax.hessian(loss)(x), hessian, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(loss(task.optimum), 0, atol=1e-30)


@pytest.mark.usefixtures("x64")
def test_gradient_descent_follows_the_closed_form():
    # x_T - x* = (I - ηH)^T (x_0 - x*)
    family = tasks.quadratic(dim=3, min_eig=0.2, max_eig=1.0)

    @jax.jit
    def descend(key):
        key_task, key_init, key_loss = jax.random.split(key, 3)
        task = family.sample(key_task)
        start = family.init(task, key_init)
        grad = jax.grad(lambda x: family.loss(x, task, (), key_loss)[0])
        end, _ = jax.lax.scan(lambda x, _: (x - 0.5 * grad(x), None), start, length=7)
        return task, start, end

    task, start, end = jax.tree.map(np.asarray, descend(jax.random.key(0)))
    shrink = np.linalg.matrix_power(
        np.eye(3) - 0.5 * task.basis @ np.diag(task.eigenvalues) @ task.basis.T, 7
    )
    assert relative_error(end - task.optimum, shrink @ (start - task.optimum)) < 1e-12


def test_the_distribution_is_haar_and_log_uniform():
    family = tasks.quadratic(dim=3, min_eig=0.01, max_eig=1.0)
    tasks_ = jax.jit(jax.vmap(family.sample))(jax.random.split(jax.random.key(0), 4000))
    basis = np.asarray(tasks_.basis, np.float64)
    gram = np.einsum("nij,nik->njk", basis, basis)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-5)
    # Haar: entries have mean 0 and second moment 1/dim; without the sign fix the mean is not 0.
    assert standard_errors(basis, np.zeros(9)) < 4.5
    assert standard_errors(basis**2, np.full(9, 1 / 3)) < 4.5
    log = np.log10(np.asarray(tasks_.eigenvalues, np.float64))
    assert log.min() >= -2.00001
    assert log.max() <= 0.00001
    assert standard_errors(log, [-1.0] * 3) < 4.5
    assert standard_errors((log + 1) ** 2, [1 / 3] * 3) < 4.5


def test_the_reference_of_the_normaliser_is_the_mean_initial_loss():
    family = tasks.quadratic(dim=3)
    task = family.sample(jax.random.key(0))

    @jax.jit
    @jax.vmap
    def losses(key):
        return family.loss(family.init(task, key), task, (), key)[0]

    sampled = np.asarray(losses(jax.random.split(jax.random.key(1), 4000)))
    # normalise(l) = ln(1e-3 + l / reference), inverted at l = 1.
    reference = 1 / (np.exp(np.float64(family.normalise(jnp.float32(1.0), task))) - 1e-3)
    assert standard_errors(sampled, reference) < 4
    assert standard_errors(sampled, 1.2 * reference) > 4


def test_the_spectrum_is_traced():
    def eigenvalues(max_eig, key):
        return tasks.quadratic(dim=2, min_eig=max_eig, max_eig=max_eig).sample(key).eigenvalues

    keys = jax.random.split(jax.random.key(0), 2)
    values = jax.jit(jax.vmap(eigenvalues))(jnp.array([0.5, 3.0]), keys)
    np.testing.assert_allclose(values, [[0.5, 0.5], [3.0, 3.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "quadratic: dim=0 is below 1"),
        ({"dim": 2, "min_eig": 0.0}, "quadratic: min_eig=0.0 is not positive"),
        ({"dim": 2, "min_eig": 2.0}, "quadratic: min_eig=2.0 is above max_eig=1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.quadratic(**settings)
