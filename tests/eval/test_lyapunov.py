import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, learned, tasks
from metaopt.eval import lyapunov
from tests.estimators import toys


def rates(system, theta, num_steps, key=0):
    run = jax.jit(lambda theta, key: lyapunov(system, theta, (), key, num_steps=num_steps))
    return np.asarray(run(theta, jax.random.key(key)))


def test_a_linear_system_has_its_spectral_radius(x64):
    growth = rates(toys.linear(), jnp.zeros(2), 400)
    np.testing.assert_allclose(growth[-1], np.log(0.95), rtol=1e-6)


def test_the_logistic_map_has_its_known_exponent(x64):
    growth = [rates(toys.logistic_map(), jnp.array(4.0), 20_000, key=k).mean() for k in (1, 2)]
    np.testing.assert_allclose(growth, np.log(2), rtol=0.01)


def test_growth_is_that_of_two_trajectories(x64):
    """The second one starts at a distance of 1e-7 in the parameters."""
    optimizer = learned.hyperparameters(optax.adam, learning_rate=learned.positive(0.1), eps=1e-3)
    system = core.training(tasks.quadratic(dim=1), optimizer)
    theta = optimizer.init(jax.random.key(3))
    growth = np.cumsum(rates(system, theta, 12, key=4))

    @jax.jit
    def parameters(distance):
        key_init, _, key_steps = jax.random.split(jax.random.key(4), 3)
        state = system.init(theta, (), key_init, num_steps=12)
        state = state._replace(params=state.params + distance)

        def step(state, index):
            state, _ = system.step(theta, state, (), jax.random.fold_in(key_steps, index))
            return state, state.params

        return jax.lax.scan(step, state, jnp.arange(12))[1]

    distance = np.abs(parameters(1e-7) - parameters(-1e-7))[:, 0] / 2e-7
    np.testing.assert_allclose(np.exp(growth), distance, rtol=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="lyapunov: num_steps must be at least 1"):
        lyapunov(toys.linear(), jnp.zeros(2), (), jax.random.key(0), num_steps=0)
