import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors


@pytest.mark.usefixtures("x64")
def test_loss_and_gradient_are_those_of_the_residual():
    family = tasks.least_squares(dim=4)
    task = family.sample(jax.random.key(0))
    x = family.init(task, jax.random.key(1))
    matrix, target = np.asarray(task.matrix), np.asarray(task.target)
    residual = matrix @ x - target

    def loss(x):
        return family.loss(x, task, (), jax.random.key(2))[0]

    np.testing.assert_allclose(loss(x), residual @ residual, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(loss)(x), 2 * matrix.T @ residual, rtol=1e-12)
    np.testing.assert_allclose(loss(jnp.linalg.solve(task.matrix, task.target)), 0, atol=1e-20)
    np.testing.assert_allclose(family.normalise(target @ target, task), np.log(1.001), rtol=1e-9)


def test_all_numbers_are_normal_and_starts_are_scaled():
    family = tasks.least_squares(dim=3, init_scale=0.5)

    def draw(key):
        key_task, key_init = jax.random.split(key)
        task = family.sample(key_task)
        return *task, family.init(task, key_init) / 0.5

    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2000))
    numbers = np.concatenate([np.asarray(x).reshape(2000, -1) for x in draws], axis=1)
    assert standard_errors(numbers, np.zeros(15)) < 4.5
    assert standard_errors(numbers**2, np.ones(15)) < 4.5
    assert standard_errors(numbers**4, np.full(15, 3.0)) < 4.5
    products = numbers[:, :, None] * numbers[:, None, :]
    assert standard_errors(products[:, *np.triu_indices(15, 1)], np.zeros(105)) < 4.5


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="least_squares: dim=0"):
        tasks.least_squares(dim=0)
