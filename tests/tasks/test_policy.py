import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors

OBSERVATION = jnp.array([0.5, -1.0])


def test_categorical_actions_come_as_often_as_their_log_probabilities_say():
    policy = tasks.categorical_policy(2, 3, hidden=(4,))
    params = policy.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4000)
    actions = jax.jit(jax.vmap(policy.sample, (None, None, 0)))(params, OBSERVATION, keys)
    probs = np.exp([policy.log_prob(params, OBSERVATION, jnp.array(a)) for a in range(3)])
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-6)
    seen = np.asarray(actions)[:, None] == np.arange(3)
    assert standard_errors(seen, probs) < 4
    assert standard_errors(seen, probs[::-1]) > 4


def test_a_gaussian_policy_has_the_density_and_moments_of_its_mean(x64):
    policy = tasks.gaussian_policy(2, 2, hidden=(3,), log_std=-0.7)
    params = policy.init(jax.random.key(0))
    first, last = [{k: np.asarray(v) for k, v in layer.items()} for layer in params]
    mean = np.tanh(np.asarray(OBSERVATION) @ first["w"] + first["b"]) @ last["w"] + last["b"]
    std, action = np.exp(-0.7), np.array([0.2, 0.4])
    density = np.exp(-0.5 * ((action - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    actual = policy.log_prob(params, OBSERVATION, jnp.asarray(action))
    np.testing.assert_allclose(actual, np.log(density).sum(), rtol=1e-10)
    keys = jax.random.split(jax.random.key(1), 2000)
    actions = jax.jit(jax.vmap(policy.sample, (None, None, 0)))(params, OBSERVATION, keys)
    assert standard_errors(actions, mean) < 4
    assert standard_errors((np.asarray(actions) - mean) ** 2, np.full(2, std**2)) < 4
    assert standard_errors(actions, mean + 0.1) > 4


def test_the_uniform_policy_prefers_nothing():
    policy = tasks.uniform_policy(4)
    assert policy.init(jax.random.key(0)) == ()
    np.testing.assert_allclose(policy.log_prob((), OBSERVATION, jnp.array(2)), np.log(1 / 4))


def test_a_linear_value_is_a_product():
    critic = tasks.value_function(2)
    params = ({"w": jnp.array([[2.0], [3.0]]), "b": jnp.array([0.5])},)
    np.testing.assert_allclose(critic.apply(params, OBSERVATION), -1.5)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="categorical_policy: num_actions=0"):
        tasks.categorical_policy(2, 0)
    with pytest.raises(ValueError, match="gaussian_policy: hidden="):
        tasks.gaussian_policy(2, 2, hidden=(0,))
    with pytest.raises(ValueError, match="uniform_policy: num_actions=0"):
        tasks.uniform_policy(0)
    with pytest.raises(ValueError, match="value_function: observation_size=0"):
        tasks.value_function(0)
