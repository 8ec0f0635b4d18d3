"""Environments as pure functions, policies that act in them, and rollouts as scans.

    a_t ~ π(· | observe(s_t)),    (s_{t+1}, r_t, done_t) = step(s_t, a_t),    t = 0, ..., T − 1

A task is what distinguishes the environments of one family: a goal, the means of a bandit's arms.
Everything is an array with a shape known in advance, so that episodes, tasks and agents are axes of
`vmap`: an episode that ends early stands still, and its later steps are marked. Sutton and Barto
2018, Reinforcement Learning: An Introduction, §3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metaopt import tree
from metaopt.core import Params, TaskParams, checked
from metaopt.data._check import at_least_one


class Environment(NamedTuple):
    """A family of Markov decision processes.

    Attributes:
        sample: `(key) -> task_params`.
        reset: `(task_params, key) -> state`.
        observe: `(state, task_params) -> observation`, a vector.
        step: `(state, task_params, action, key) -> (state, reward, done)`, the reward and whether
            the episode ended being those of the action.
        observation_size: length of an observation. Static.
        action_size: number of actions, 0, 1, ..., or, if they are vectors, their length. Static.
    """

    sample: Callable[[PRNGKeyArray], TaskParams]
    reset: Callable[[TaskParams, PRNGKeyArray], Any]
    observe: Callable[[Any, TaskParams], Float[Array, " size"]]
    step: Callable[..., tuple[Any, Float[Array, ""], Bool[Array, ""]]]
    observation_size: int
    action_size: int


class Policy(NamedTuple):
    """A distribution over actions.

    Attributes:
        init: `(key) -> params`.
        sample: `(params, observation, key) -> action`.
        log_prob: `(params, observation, action) -> scalar`.
    """

    init: Callable[[PRNGKeyArray], Params]
    sample: Callable[[Params, Array, PRNGKeyArray], Array]
    log_prob: Callable[[Params, Array, Array], Float[Array, ""]]


class Trajectory(NamedTuple):
    """One episode, padded to the horizon T.

    Attributes:
        observations: before each action.
        actions: what was done.
        rewards: 0 once the episode has ended.
        done: whether the episode ended with this action.
        active: whether it had not ended before: what a loss may count.
        final_observation: after the last action.
    """

    observations: Float[Array, "T size"]
    actions: Array
    rewards: Float[Array, " T"]
    done: Bool[Array, " T"]
    active: Bool[Array, " T"]
    final_observation: Float[Array, " size"]


@checked
def rollout(
    environment: Environment, policy: Policy, *, horizon: int
) -> Callable[[Params, TaskParams, PRNGKeyArray], Trajectory]:
    """Makes a function that plays one episode.

    Args:
        environment: where.
        policy: who.
        horizon: actions T after which an episode is cut off. Static.

    Returns:
        `(params, task_params, key) -> Trajectory`. Where actions are continuous it is
        differentiable through the environment; a score-function estimator stops that.

    Raises:
        ValueError: if `horizon < 1`.
    """
    at_least_one("rollout", horizon=horizon)

    def run(params, task_params, key):
        key_reset, key_steps = jax.random.split(key)

        def one(carry, index):
            state, ended = carry
            key_action, key_step = jax.random.split(jax.random.fold_in(key_steps, index))
            observation = environment.observe(state, task_params)
            action = policy.sample(params, observation, key_action)
            new, reward, done = environment.step(state, task_params, action, key_step)
            new = tree.where(ended, state, tree.cast_like(new, state))
            reward = jnp.where(ended, 0, reward)
            return (new, ended | done), (observation, action, reward, done & ~ended, ~ended)

        start = (environment.reset(task_params, key_reset), jnp.array(False))
        (state, _), steps = jax.lax.scan(one, start, jnp.arange(horizon))
        return Trajectory(*steps, environment.observe(state, task_params))

    return run
