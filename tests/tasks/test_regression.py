import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from tests.helpers import relative_error
from tests.tasks.training import losses_of_adam


@pytest.mark.usefixtures("x64")
def test_loss_and_gradient_of_a_linear_model_match_numpy():
    family = tasks.regression((2, 2), num_outputs=3, hidden=())
    key_inputs, key_labels = jax.random.split(jax.random.key(0))
    batch = data.Pool(
        jax.random.normal(key_inputs, (5, 2, 2)), jax.random.normal(key_labels, (5, 3))
    )
    params = jax.tree.map(lambda p: p + 0.1, family.init((), jax.random.key(1)))
    x, y = np.asarray(batch.inputs).reshape(5, 4), np.asarray(batch.labels)
    error = x @ np.asarray(params[0]["w"]) + np.asarray(params[0]["b"]) - y
    (loss, _), grads = jax.value_and_grad(family.loss, has_aux=True)(
        params, (), batch, jax.random.key(2)
    )
    np.testing.assert_allclose(loss, (error**2).mean(), rtol=1e-12)
    assert relative_error(grads[0]["w"], 2 * x.T @ error / 15) < 1e-12
    assert relative_error(grads[0]["b"], 2 * error.sum(0) / 15) < 1e-12


def test_adam_goes_below_the_constant_guess_on_diabetes():
    family = tasks.regression((10,), hidden=(16,), batch_size=32)
    losses = losses_of_adam(family, data.tabular("diabetes").train, num_steps=200)
    # Least squares explains about half of the variance.
    assert losses[-50:].mean() < 0.6


def test_bad_settings_and_labels_are_refused():
    with pytest.raises(ValueError, match="regression: num_outputs=0 is below 1"):
        tasks.regression((4,), num_outputs=0)
    with pytest.raises(ValueError, match="regression: batch_size=0 is below 1"):
        tasks.regression((4,), batch_size=0)
    family = tasks.regression((4,))
    params = family.init((), jax.random.key(0))
    with pytest.raises(ValueError, match=r"regression: a label has the shape \(\), not \(1,\)"):
        family.loss(params, (), data.Pool(jnp.ones((3, 4)), jnp.ones(3)), jax.random.key(1))
