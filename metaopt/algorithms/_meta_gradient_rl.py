"""Meta-gradient reinforcement learning: an agent learns the return that it learns from.

    A(y; η) = mean over steps of  w (v_t − G_t(η))² / 2 − log π(a_t) (G_t(η) − v_t)
    y' = y − inner_opt(∇_y A(y; η)) on one batch of episodes,    f(η) = A(y'; η') on the next batch

η = (γ, λ) as logits, η' fixed. Values in G and v in the second term are constants to ∇_y, but G is
not one to η: the mixed derivative of A is all that reaches η. Xu et al. 2018, arXiv:1805.09801.

The agent's update is the training of a bilevel problem and the meta-gradient one that is truncated
after a step, so that the method is

    system = core.bilevel_training(meta_gradient_rl(...), inner_opt)
    estimator = estimators.truncated_backprop(system, truncation=1, horizon=None, num_tasks=1)

Differs from the paper: dependence of the agent on older η is dropped altogether (their μ = 0).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.algorithms._returns import lambda_returns
from metaopt.core import BilevelProblem, Params, Scalar, checked
from metaopt.data._check import at_least_one
from metaopt.tasks import Environment, Policy, ValueFunction, rollout


class ReturnTheta(NamedTuple):
    """The parameters of a return, as logits.

    Attributes:
        discount: of γ.
        trace: of λ.
    """

    discount: Float[Array, ""]
    trace: Float[Array, ""]


class ActorCritic(NamedTuple):
    """What an agent trains.

    Attributes:
        policy: of the policy.
        value: of the value function.
    """

    policy: Params
    value: Params


@checked
def return_theta(discount: Scalar, trace: Scalar) -> ReturnTheta:
    """The meta-parameters of a return with these settings, both strictly between 0 and 1."""
    logit = jax.scipy.special.logit
    return ReturnTheta(logit(jnp.asarray(discount, float)), logit(jnp.asarray(trace, float)))


def return_settings(theta: ReturnTheta) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The discount γ and the trace λ that meta-parameters stand for."""
    return jax.nn.sigmoid(theta.discount), jax.nn.sigmoid(theta.trace)


@checked
def meta_gradient_rl(
    environment: Environment,
    policy: Policy,
    value: ValueFunction,
    *,
    horizon: int,
    num_episodes: int = 32,
    outer_discount: Scalar = 1.0,
    outer_trace: Scalar = 1.0,
    value_weight: Scalar = 0.5,
) -> BilevelProblem:
    """An actor-critic whose discount and trace are the meta-parameters.

    Args:
        environment: the environment; its task is the `data`, `environment.sample(key)`.
        policy: the actor; `uniform_policy` leaves the prediction of values.
        value: the critic.
        horizon: actions of an episode at most; one that is cut off goes on with the critic's
            value. Static.
        num_episodes: episodes of a batch. Static.
        outer_discount: γ of the outer loss. Traced.
        outer_trace: λ of the outer loss. Traced.
        value_weight: w, the weight of the critic's loss. Traced.

    Returns:
        A problem with `theta` a `ReturnTheta` and `params` an `ActorCritic`. Both losses play
        episodes of their own, with the policy as it is.

    Raises:
        ValueError: if a count is below 1.
    """
    at_least_one("meta_gradient_rl", horizon=horizon, num_episodes=num_episodes)
    play = rollout(environment, policy, horizon=horizon)

    def agent_loss(params, discount, trace, task_params, key):
        keys = jax.random.split(key, num_episodes)
        fixed = jax.lax.stop_gradient(params)
        episodes = jax.vmap(play, (None, None, 0))(fixed.policy, task_params, keys)
        losses = jax.vmap(episode_loss, (None, None, None, 0))(params, discount, trace, episodes)
        return jnp.sum(losses) / jnp.sum(episodes.active)

    def episode_loss(params, discount, trace, episode):
        values_of = jax.vmap(value.apply, (None, 0))
        values = values_of(params.value, episode.observations)
        constants = jax.lax.stop_gradient(values)
        final = value.apply(params.value, episode.final_observation)
        next_values = jnp.append(constants[1:], jax.lax.stop_gradient(final))
        discounts = discount * (~episode.done).astype(episode.rewards.dtype)
        returns = lambda_returns(episode.rewards, discounts, next_values, trace)
        log_probs = jax.vmap(policy.log_prob, (None, 0, 0))(
            params.policy, episode.observations, episode.actions
        )
        critic = 0.5 * value_weight * (values - returns) ** 2
        actor = -log_probs * (returns - constants)
        return jnp.sum(jnp.where(episode.active, critic + actor, 0))

    def init(key):
        key_policy, key_value = jax.random.split(key)
        return ActorCritic(policy.init(key_policy), value.init(key_value))

    def inner_loss(params, theta, data, key):
        return agent_loss(params, *return_settings(theta), data, key)

    def outer_loss(params, theta, data, key):
        del theta
        return agent_loss(params, outer_discount, outer_trace, data, key)

    return BilevelProblem(init, inner_loss, outer_loss)
