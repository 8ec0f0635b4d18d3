import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import log_linear, warmup_cosine
from tests import helpers

NUM_STEPS = 20


def values(learnable, theta=None, num_steps=NUM_STEPS, counts=NUM_STEPS + 5):
    theta = jax.tree.map(jnp.asarray, learnable.init) if theta is None else theta
    schedule = learnable.value(theta, num_steps)
    return jax.vmap(schedule)(jnp.arange(counts))


def test_warmup_cosine_is_the_optax_schedule(x64):
    actual = values(warmup_cosine(0.3, warmup=0.25, final=0.1))
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, NUM_STEPS, end_value=0.03)
    counts = jnp.arange(NUM_STEPS + 5)
    np.testing.assert_allclose(actual, jax.vmap(expected)(counts), rtol=1e-12, atol=1e-15)


def test_log_linear_is_geometric_between_its_values(x64):
    actual = values(log_linear(0.01, 1.0, 0.25))
    rising = 0.01 * 100.0 ** (np.arange(10) / 10)
    falling = 0.25 ** (np.arange(11) / 10)
    np.testing.assert_allclose(
        actual, np.concatenate([rising, falling, np.full(4, 0.25)]), rtol=1e-12
    )


@pytest.mark.parametrize(
    "learnable", [log_linear(0.01, 1.0, 0.25), warmup_cosine(0.3, warmup=0.33)]
)
def test_gradients_match_central_differences(x64, learnable):
    def total(theta):
        weights = jnp.cos(jnp.arange(NUM_STEPS + 5))
        return jnp.sum(weights * values(learnable, theta))

    theta = jax.tree.map(jnp.asarray, learnable.init)
    expected = helpers.central_differences(total, theta)
    assert helpers.relative_error(jax.grad(total)(theta), expected) < 1e-8


def test_horizons_may_be_traced():
    learnable = log_linear(0.1, 1.0)
    actual = jax.jit(jax.vmap(lambda n: values(learnable, num_steps=n, counts=11)))(
        jnp.array([10, 20])
    )
    np.testing.assert_allclose(actual[:, 10], [1.0, 10**-0.5], rtol=1e-6)


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="log_linear: values="):
        log_linear(0.1)
    with pytest.raises(ValueError, match="log_linear: values=-1"):
        log_linear(0.1, -1.0)
    with pytest.raises(ValueError, match="warmup_cosine: warmup=0.0"):
        warmup_cosine(0.1, warmup=0.0)
    for learnable in (warmup_cosine(0.1), log_linear(0.1, 1.0)):
        with pytest.raises(ValueError, match="num_steps=None"):
            learnable.value(learnable.init, None)
