"""Rows of environments and policies for the conformance tests: (names covered, thunk).

Each is an episode as a function of the policy's parameters.
"""

import jax
import jax.numpy as jnp

from metaopt import tasks


def episode(environment, policy):
    """Three actions in a task."""
    params = policy.init(jax.random.key(0))
    task_params = environment.sample(jax.random.key(1))
    play = tasks.rollout(environment, policy, horizon=3)
    return play, (params, task_params, jax.random.key(2))


def discrete(environment):
    """Linear logits."""
    policy = tasks.categorical_policy(environment.observation_size, environment.action_size)
    return episode(environment, policy)


def walk():
    """The uniform policy has no parameters, so the logarithm of a probability is checked."""
    environment = tasks.random_walk(num_states=3)
    return episode(environment, tasks.uniform_policy(environment.action_size))


def value():
    """The value of an observation."""
    critic = tasks.value_function(3, hidden=(2,))
    return critic.apply, (critic.init(jax.random.key(0)), jnp.array([1.0, -2.0, 0.5]))


def logits():
    """A log-probability of a policy made from functions."""
    policy = tasks.policy_of_logits(
        lambda key: jax.random.normal(key, (3,)), lambda params, observation: params
    )
    return policy.log_prob, (policy.init(jax.random.key(0)), jnp.zeros(1), jnp.array(1))


ENVIRONMENT_ROWS = [
    ("rollout bandit categorical_policy", lambda: discrete(tasks.bandit(num_arms=2))),
    ("gridworld", lambda: discrete(tasks.gridworld(height=2, width=2))),
    ("catch", lambda: discrete(tasks.catch(rows=3, columns=2))),
    ("cart_pole", lambda: discrete(tasks.cart_pole())),
    (
        "navigation gaussian_policy",
        lambda: episode(tasks.navigation(), tasks.gaussian_policy(2, 2, hidden=(3,))),
    ),
    ("random_walk uniform_policy", walk),
    ("value_function", value),
    ("policy_of_logits", logits),
]
