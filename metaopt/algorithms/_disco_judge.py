"""What judges an agent of DiscoRL: the policy gradient with a critic of its own.

    L = −J − [g − stop(g)] − c_π H(π) − c_y (H(y) + H(z_a)),    g = mean log π(a_t) A_t
    critic: ∇ ½ (v_t − G_t)² on the episodes that the agent learned from, G the λ-return

J is the mean discounted return and A = G − v in running standard deviations from its mean; both are
constants. Oh et al. 2025, doi:10.1038/s41586-025-09761-x.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt.algorithms._categorical import entropy, log_prob_of, mean_over, of_actions
from metaopt.algorithms._disco_agent import DiscoAgent
from metaopt.algorithms._disco_values import (
    Averages,
    no_averages,
    normalised,
    update_averages,
)
from metaopt.algorithms._returns import lambda_returns
from metaopt.core import Params, Scalar
from metaopt.tasks import Environment, Trajectory, ValueFunction, policy_of_logits, rollout

# Episodes, and their observations with the final one.
Played = tuple[Trajectory, Float[Array, "episodes T+1 size"]]


class JudgeState(NamedTuple):
    """A critic in training.

    Attributes:
        params: of the value function.
        opt_state: of its optimizer.
        scale: of the advantages.
    """

    params: Params
    opt_state: Any
    scale: Averages


class Judge(NamedTuple):
    """Functions of `critic_judge`.

    Attributes:
        init: `(key) -> JudgeState`.
        step: `(params, state, task_params, played, key) -> (loss, JudgeState)`: trains the critic
            on what was played, then judges the agent's new `params` by new episodes.
    """

    init: Callable[..., JudgeState]
    step: Callable[..., tuple[Float[Array, ""], JudgeState]]


def player(environment: Environment, agent: DiscoAgent, *, horizon: int) -> Callable[..., Played]:
    """`(params, task_params, key, num_episodes)` to episodes without derivatives."""
    policy = policy_of_logits(agent.init, lambda params, x: agent.apply(params, x).policy)
    run = rollout(environment, policy, horizon=horizon)

    def play(params, task_params, key, num_episodes):
        keys = jax.random.split(key, num_episodes)
        fixed = jax.lax.stop_gradient(params)
        episodes = jax.vmap(run, (None, None, 0))(fixed, task_params, keys)
        episodes = jax.lax.stop_gradient(episodes)
        final = episodes.final_observation[:, None]
        return episodes, jnp.concatenate([episodes.observations, final], axis=1)

    return play


def critic_judge(
    play: Callable[..., Played],
    agent: DiscoAgent,
    critic: ValueFunction,
    critic_opt: optax.GradientTransformation,
    *,
    num_episodes: int,
    discount: Scalar,
    trace: Scalar,
    entropy_weight: Scalar,
    prediction_entropy: Scalar,
) -> Judge:
    """Judges by returns beyond what a critic expects."""
    outputs_of = jax.vmap(jax.vmap(agent.apply, (None, 0)), (None, 0))
    values_of = jax.vmap(jax.vmap(critic.apply, (None, 0)), (None, 0))

    def init(key):
        params = critic.init(key)
        return JudgeState(params, critic_opt.init(params), no_averages())

    def returns_and_values(params, episodes, observations):
        values = values_of(params, observations)
        discounts = discount * (~episodes.done).astype(values.dtype)
        returns = jax.vmap(lambda_returns, (0, 0, 0, None))(
            episodes.rewards.astype(values.dtype), discounts, values[:, 1:], trace
        )
        return jax.lax.stop_gradient(returns), values[:, :-1]

    def train(state, episodes, observations):
        def loss(params):
            returns, values = returns_and_values(params, episodes, observations)
            return mean_over(0.5 * (values - returns) ** 2, episodes.active)

        grads = jax.grad(loss)(state.params)
        updates, opt_state = critic_opt.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state)

    def step(params, state, task_params, played, key):
        state = jax.lax.stop_gradient(train(state, *played))
        episodes, observations = play(params, task_params, key, num_episodes)
        returns, values = returns_and_values(state.params, episodes, observations)
        scale = update_averages(state.scale, returns - values, episodes.active)
        outputs = outputs_of(params, episodes.observations)
        log_probs = log_prob_of(outputs.policy, episodes.actions)
        gain = mean_over(log_probs * normalised(scale, returns - values), episodes.active)
        predictions = entropy(outputs.y) + entropy(of_actions(outputs.z, episodes.actions))
        bonus = entropy_weight * entropy(outputs.policy) + prediction_entropy * predictions
        times = jnp.arange(episodes.rewards.shape[1], dtype=episodes.rewards.dtype)
        value = jnp.mean(episodes.rewards @ jnp.power(discount, times))
        loss = -value - (gain - jax.lax.stop_gradient(gain)) - mean_over(bonus, episodes.active)
        return loss, state._replace(scale=scale)

    return Judge(init, step)
