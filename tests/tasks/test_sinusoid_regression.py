import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors


def test_a_network_without_weights_has_the_loss_of_the_curve_itself():
    family = tasks.sinusoid_regression(hidden=(3,), batch_size=500)
    task = tasks.SinusoidTask(jnp.float32(2.0), jnp.float32(0.7))
    params = jax.tree.map(jnp.zeros_like, family.init(task, jax.random.key(0)))
    batch = family.batch((), task, jax.random.key(1))
    x, y = np.asarray(batch.inputs, np.float64), np.asarray(batch.labels, np.float64)
    np.testing.assert_allclose(y, 2 * np.sin(x - 0.7), atol=1e-5)
    loss, _ = family.loss(params, task, batch, jax.random.key(2))
    np.testing.assert_allclose(loss, (y**2).mean(), rtol=1e-5)
    # E y² over x ~ U[-5, 5] is A²/2 · (1 - sin 10 cos 2φ / 10).
    mean = 2 * (1 - np.sin(10) * np.cos(1.4) / 10)
    assert standard_errors(y**2, mean) < 4


def test_a_batch_has_as_many_points_as_asked_for():
    family = tasks.sinusoid_regression(batch_size=7)
    task = family.sample(jax.random.key(0))
    batch = family.batch((), task, jax.random.key(1))
    assert batch.inputs.shape == batch.labels.shape == (7, 1)
    assert [layer["w"].shape for layer in family.init(task, jax.random.key(2))] == [
        (1, 40), (40, 40), (40, 1)
    ]  # fmt: skip


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="sinusoid_regression: batch_size=0 is below 1"):
        tasks.sinusoid_regression(batch_size=0)
