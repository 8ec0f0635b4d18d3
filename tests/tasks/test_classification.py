import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from metaopt import tasks
from metaopt.data import gaussian_mixture


@pytest.mark.compiles
def test_a_flax_model_is_a_task_like_ours():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(jnp.tanh(linen.Dense(5)(x)))

    model = Model()
    theirs = tasks.classification(
        lambda key: model.init(key, jnp.zeros((1, 4))),
        model.apply,
        input_shape=(4,),
        num_classes=3,
        batch_size=6,
        penalty=lambda params: 0.25,
    )
    ours = tasks.mlp((4,), 3, hidden=(5,), activation="tanh", batch_size=6)
    pool = gaussian_mixture(jax.random.key(0), num_classes=3, dim=4, num_examples=9)
    params = theirs.init((), jax.random.key(1))
    layers = params["params"]
    same = tuple({"w": layer["kernel"], "b": layer["bias"]} for layer in layers.values())

    key_batch, key_loss = jax.random.split(jax.random.key(2))
    batch = theirs.batch(pool, (), key_batch)
    loss, metrics = theirs.loss(params, (), batch, key_loss)
    expected, expected_metrics = ours.loss(same, (), batch, jax.random.clone(key_loss))
    np.testing.assert_allclose(loss, expected + 0.25, rtol=1e-6)
    np.testing.assert_allclose(metrics.accuracy, expected_metrics.accuracy)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="classification: num_classes=1 is below 2"):
        tasks.classification(lambda key: (), lambda params, x: x, input_shape=(2,), num_classes=1)
