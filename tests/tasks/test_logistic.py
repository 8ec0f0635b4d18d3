import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from metaopt import tasks
from metaopt.data import Pool, gaussian_mixture
from tests.helpers import ravel, relative_error


def pool():
    return gaussian_mixture(
        jax.random.key(0), num_classes=3, dim=4, num_examples=60, separation=1.0
    )


@pytest.mark.usefixtures("x64")
def test_gradient_vanishes_at_scikit_learns_solution():
    # scikit-learn minimises Σ loss + ½ ‖W‖² / C: l2 = 1 / (C n), biases free in both.
    data, l2 = pool(), 0.05
    family = tasks.logistic((4,), 3, l2=l2)
    model = LogisticRegression(C=1 / (l2 * 60), tol=1e-10, max_iter=1000)
    model.fit(np.asarray(data.inputs), np.asarray(data.labels))
    params = {"w": jnp.asarray(model.coef_.T), "b": jnp.asarray(model.intercept_)}

    def loss(params):
        return family.loss(params, (), data, jax.random.key(0))

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.abs(ravel(grads)).max() < 1e-6
    assert np.isclose(metrics.accuracy, model.score(data.inputs, data.labels))
    probability = model.predict_proba(data.inputs)[np.arange(60), np.asarray(data.labels)]
    expected = -np.log(probability).mean() + 0.5 * l2 * (model.coef_**2).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_gradient_is_the_closed_form():
    data, l2 = pool(), 0.3
    family = tasks.logistic((4,), 3, l2=l2)
    w, b = jax.random.normal(jax.random.key(1), (4, 3)), jnp.array([0.1, -0.2, 0.3])
    grads = jax.grad(lambda p: family.loss(p, (), data, jax.random.key(0))[0])({"w": w, "b": b})
    x, y = np.asarray(data.inputs), np.eye(3)[np.asarray(data.labels)]
    logits = x @ np.asarray(w) + np.asarray(b)
    residual = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - y
    assert relative_error(grads["w"], x.T @ residual / 60 + l2 * np.asarray(w)) < 1e-12
    assert relative_error(grads["b"], residual.mean(0)) < 1e-12


@pytest.mark.compiles
def test_the_initial_loss_is_that_of_a_uniform_guess():
    family = tasks.logistic((4,), 3, batch_size=8, l2=1.0)
    params = family.init((), jax.random.key(0))
    batch = family.batch(pool(), (), jax.random.key(1))
    loss, _ = family.loss(params, (), batch, jax.random.key(2))
    np.testing.assert_allclose(loss, math.log(3), rtol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="logistic: l2=-1.0 is negative"):
        tasks.logistic((4,), 3, l2=-1.0)
    with pytest.raises(ValueError, match=r"logistic: input_shape=\(0,\) has a size below 1"):
        tasks.logistic((0,), 3)
    with pytest.raises(ValueError, match="logistic: num_classes=1 is below 2"):
        tasks.logistic((4,), 1)


def test_a_pool_of_another_shape_is_refused():
    family = tasks.logistic((5,), 3)
    with pytest.raises(ValueError, match=r"inputs of shape \(4,\), but input_shape=\(5,\)"):
        family.batch(pool(), (), jax.random.key(0))
    with pytest.raises(ValueError, match="data is a tuple without inputs"):
        family.batch((), (), jax.random.key(0))
    with pytest.raises(ValueError, match="the pool is empty"):
        family.batch(Pool(jnp.zeros((0, 5)), jnp.zeros(0, int)), (), jax.random.key(0))
