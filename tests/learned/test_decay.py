import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import learned


def test_updates_follow_optax_cosine():
    plain = learned.hyperparameters(optax.sgd, learning_rate=learned.positive(0.1))
    decayed = learned.cosine_decayed(plain)
    theta = decayed.init(jax.random.key(0))
    expected = optax.sgd(optax.cosine_decay_schedule(0.1, 4))
    tx = decayed.optimizer(theta, num_steps=jnp.array(4))
    params, grads = jnp.ones(3), jnp.array([1.0, -2.0, 0.5])
    state, expected_state = tx.init(params), expected.init(params)
    for _ in range(6):
        updates, state = tx.update(grads, state, params)
        wanted, expected_state = expected.update(grads, expected_state, params)
        np.testing.assert_allclose(updates, wanted, atol=1e-8)


def test_needs_the_number_of_steps():
    decayed = learned.cosine_decayed(learned.mlp())
    with pytest.raises(ValueError, match="cosine_decayed: num_steps=None"):
        decayed.optimizer(decayed.init(jax.random.key(0)))
