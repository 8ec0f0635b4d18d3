import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, learned, tasks, unroll


def system():
    family = tasks.quadratic(dim=3)
    rule = learned.hyperparameters(optax.sgd, learning_rate=learned.positive(0.1))
    return core.training(family, rule), rule.init(jax.random.key(0))


def losses(system, theta, num_steps):
    state = system.init(theta, (), jax.random.key(1), num_steps=num_steps)

    def step(state, index):
        state, info = system.step(theta, state, (), jax.random.fold_in(jax.random.key(2), index))
        return state, info.loss

    return jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(num_steps))[1])(state)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_losses_are_weighed_by_progress(power):
    plain, theta = system()
    expected = losses(plain, theta, 7) * (power + 1) * (np.arange(1, 8) / 7) ** power
    actual = losses(unroll.late_losses(plain, power=power), theta, 7)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_weighted_mean_has_the_weighted_gradient(x64):
    plain, theta = system()
    weights = 3 * (np.arange(1, 7) / 6) ** 2
    late = unroll.late_losses(plain, power=2.0)
    actual = jax.grad(lambda theta: losses(late, theta, 6).mean())(theta)
    expected = jax.grad(lambda theta: (weights * losses(plain, theta, 6)).mean())(theta)
    np.testing.assert_allclose(actual["learning_rate"], expected["learning_rate"], rtol=1e-12)
    assert abs(expected["learning_rate"]) > 1e-3


def test_the_planned_length_is_needed():
    late = unroll.late_losses(system()[0])
    with pytest.raises(ValueError, match="num_steps=None"):
        late.init(system()[1], (), jax.random.key(0))


def test_a_negative_power_is_refused():
    with pytest.raises(ValueError, match=r"power=-1\.0 is negative"):
        unroll.late_losses(system()[0], power=-1.0)
