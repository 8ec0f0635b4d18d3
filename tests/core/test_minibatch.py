import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.core import BilevelProblem, Split, minibatched
from tests.helpers import standard_errors


def means():
    """Inner loss θ · mean of the inner rows, outer loss the mean of params · row, squared."""
    return BilevelProblem(
        init=lambda key: jnp.zeros(()),
        inner_loss=lambda params, theta, data, key: theta * jnp.mean(data.inner["x"]),
        outer_loss=lambda params, theta, data, key: jnp.mean((params * data.outer) ** 2),
    )


DATA = Split({"x": jnp.array([1.0, 2.0, 6.0])}, jnp.array([1.0, 3.0]))


def test_losses_on_batches_are_unbiased():
    problem = minibatched(means(), batch_size=2)
    keys = jax.random.split(jax.random.key(0), 4_000)
    inner = jax.vmap(problem.inner_loss, (None, None, None, 0))(1.0, 2.0, DATA, keys)
    outer = jax.vmap(problem.outer_loss, (None, None, None, 0))(
        2.0, 1.0, DATA, jax.random.clone(keys)
    )
    assert standard_errors(inner, 6.0) < 4
    assert standard_errors(inner, 6.6) > 4
    assert standard_errors(outer, 20.0) < 4
    assert standard_errors(outer, 22.0) > 4
    # Means of two of the three rows, with replacement.
    assert set(np.unique(inner)) == {2.0, 3.0, 4.0, 7.0, 8.0, 12.0}


def test_one_key_is_one_batch_at_whatever_point():
    problem = minibatched(means(), batch_size=2)
    for seed in range(5):
        low, high = (
            problem.inner_loss(0.0, theta, DATA, jax.random.key(seed)) for theta in (1.0, 3.0)
        )
        np.testing.assert_allclose(high, 3 * low, rtol=1e-6)


def test_bad_settings_and_data_are_refused():
    with pytest.raises(ValueError, match="minibatched: batch_size must be at least 1, got 0"):
        minibatched(means(), batch_size=0)
    problem = minibatched(means(), batch_size=2)
    with pytest.raises(ValueError, match="pass metaopt.core.Split"):
        problem.inner_loss(0.0, 1.0, DATA.inner, jax.random.key(0))
    bad = Split({"x": jnp.ones(3), "y": jnp.ones(2)}, jnp.ones(2))
    with pytest.raises(ValueError, match="minibatched: the leading axes of a pool are"):
        problem.inner_loss(0.0, 1.0, bad, jax.random.key(0))
