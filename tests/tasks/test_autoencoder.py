import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.data import Pool


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reconstruction", ["squared_error", "cross_entropy"])
def test_loss_matches_numpy(reconstruction):
    family = tasks.autoencoder(
        (2, 3), hidden=(4,), activation="tanh", reconstruction=reconstruction
    )
    inputs = jax.random.uniform(jax.random.key(0), (5, 2, 3))
    params = jax.tree.map(lambda x: x + 0.1, family.init((), jax.random.key(1)))
    first, last = jax.tree.map(np.asarray, params)
    x = np.asarray(inputs).reshape(5, 6)
    logits = np.tanh(x @ first["w"] + first["b"]) @ last["w"] + last["b"]
    guess = 1 / (1 + np.exp(-logits))
    expected = {
        "squared_error": ((guess - x) ** 2).mean(),
        "cross_entropy": -(x * np.log(guess) + (1 - x) * np.log(1 - guess)).mean(),
    }
    pool = Pool(inputs, jnp.zeros(5, int))
    loss, _ = family.loss(params, (), pool, jax.random.key(2))
    np.testing.assert_allclose(loss, expected[reconstruction], rtol=1e-12)


@pytest.mark.parametrize(
    ("reconstruction", "reference"), [("squared_error", 0.25), ("cross_entropy", math.log(2))]
)
def test_zero_weights_give_the_reference_loss_on_binary_inputs(reconstruction, reference):
    family = tasks.autoencoder((4,), hidden=(2,), reconstruction=reconstruction)
    params = jax.tree.map(jnp.zeros_like, family.init((), jax.random.key(0)))
    pool = Pool(jnp.array([[0.0, 1.0, 1.0, 0.0]]), jnp.zeros(1, int))
    loss, _ = family.loss(params, (), pool, jax.random.key(1))
    np.testing.assert_allclose(loss, reference, rtol=1e-6)
    np.testing.assert_allclose(family.normalise(loss, ()), math.log(1.001), atol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="reconstruction='l1' is unknown; choose from"):
        tasks.autoencoder((4,), reconstruction="l1")
    with pytest.raises(ValueError, match=r"autoencoder: hidden=\(4, 0\) has a width below 1"):
        tasks.autoencoder((4,), hidden=(4, 0))
    with pytest.raises(ValueError, match="autoencoder: batch_size=0 is below 1"):
        tasks.autoencoder((4,), batch_size=0)
