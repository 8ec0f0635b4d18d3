import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks

BAD = jnp.array([jnp.nan, jnp.inf, -jnp.inf])


def test_clip_classification():
    normalise = tasks.clip_classification(10)
    upper = 1.5 * math.log(10)
    np.testing.assert_allclose(normalise(BAD, ()), [upper] * 3, rtol=1e-6)
    losses = jnp.array([-1.0, 0.0, 2.3, upper, 100.0])
    np.testing.assert_allclose(normalise(losses, ()), [0, 0, 2.3, upper, upper], rtol=1e-6)


def test_velo_classification():
    # With C = 10: log 2C = 2.995732, log(C / 5) = 0.693147, 10 / log C = 4.342945.
    normalise = tasks.velo_classification(10)
    np.testing.assert_allclose(normalise(BAD, ()), [10.0] * 3, rtol=1e-6)
    losses = jnp.array([-1.0, 0.0, 1.0, math.log(2), 50.0])
    expected = [-3.0103, -3.0103, 1.332642, 0.0, 10.0]
    np.testing.assert_allclose(normalise(losses, ()), expected, rtol=1e-5, atol=1e-6)


def test_relative_log():
    normalise = tasks.relative_log(lambda task_params: task_params, floor=1e-3, ceiling=10.0)
    top = math.log(10.001)
    np.testing.assert_allclose(normalise(BAD, 2.0), [top] * 3, rtol=1e-6)
    losses = jnp.array([-1.0, 0.0, 0.02, 2.0, 1e9])
    expected = [math.log(1e-3), math.log(1e-3), math.log(0.011), math.log(1.001), top]
    np.testing.assert_allclose(normalise(losses, 2.0), expected, rtol=1e-5, atol=1e-6)


def test_relative_log_does_not_depend_on_the_units_of_the_loss():
    normalise = tasks.relative_log(lambda task_params: task_params)
    np.testing.assert_allclose(
        normalise(jnp.float32(0.3), 2.0), normalise(jnp.float32(300.0), 2000.0), rtol=1e-5
    )


def test_gradients_are_finite_for_bad_losses():
    for normalise in (
        tasks.clip_classification(3),
        tasks.velo_classification(3),
        tasks.relative_log(lambda task_params: 1.0),
    ):
        slopes = jax.vmap(jax.grad(lambda loss, n=normalise: n(loss, ())))(BAD)
        np.testing.assert_array_equal(slopes, 0)


@pytest.mark.parametrize("factory", [tasks.clip_classification, tasks.velo_classification])
def test_one_class_is_refused(factory):
    with pytest.raises(ValueError, match="num_classes=1 is below 2"):
        factory(1)


def test_a_floor_of_zero_is_refused():
    with pytest.raises(ValueError, match="relative_log: floor=0"):
        tasks.relative_log(lambda task_params: 1.0, floor=0.0)
