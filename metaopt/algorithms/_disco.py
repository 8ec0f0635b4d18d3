"""DiscoRL: a network says what an agent's policy and predictions should have been.

    π̂, ŷ, ẑ = rule(θ; episodes, outputs of the agent and of its moving average)
    agent:  ∇ mean over steps of  KL(π̂ ‖ π) + KL(ŷ ‖ y) + KL(ẑ ‖ z_a) + KL(π_{t+1} ‖ p_a)
                                  + w · CE(target of q_a, q_a)
    rule:   −return after the update, by the policy gradient, and regularisers

The last two losses of the agent have no θ: p learns the next policy, q the value of every action.
Targets are constants to the agent, and to the rule everything but π̂, ŷ, ẑ and what it reads of y
and z. Oh et al. 2025 (Nature 648), doi:10.1038/s41586-025-09761-x, with settings as released.

A lifetime is a trajectory of the system below, a population of agents the tasks of an estimator, K
updates its truncation:

    estimators.truncated_backprop(system, truncation=K, horizon=lifetime, num_tasks=population)

Differs from the released code: an update plays episodes of its own from their start instead of
going on with segments of 16 steps, so that the actions are the agent's own; every one of the K
updates is judged, not the last one alone; the critic that judges learns plain λ-returns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt import tree
from metaopt.algorithms._categorical import divergence, mean_over, of_actions
from metaopt.algorithms._disco_agent import DiscoAgent
from metaopt.algorithms._disco_judge import JudgeState, critic_judge, player
from metaopt.algorithms._disco_rule import DiscoInputs, DiscoRule, DiscoTargets
from metaopt.algorithms._disco_values import (
    Averages,
    evaluate,
    no_averages,
    normalised,
    two_hot,
    update_averages,
)
from metaopt.core import Params, Scalar, StepInfo, System, TaskParams, checked
from metaopt.data._check import at_least_one
from metaopt.tasks import Environment, ValueFunction


class DiscoState(NamedTuple):
    """An agent in its lifetime.

    Attributes:
        task_params: its task.
        params: what it trains.
        opt_state: of its optimizer.
        memory: of the rule.
        average: the moving average of `params`.
        scale: of the agent's advantages.
        judge: what judges it.
    """

    task_params: TaskParams
    params: Params
    opt_state: Any
    memory: Any
    average: Params
    scale: Averages
    judge: JudgeState


class _Lesson(NamedTuple):
    """What an agent learns from; all of it is constant to the agent."""

    targets: DiscoTargets
    next_policy: Float[Array, "episodes T actions"]
    values: Float[Array, "episodes T bins"]


@checked
def disco_rl(
    environment: Environment,
    agent: DiscoAgent,
    rule: DiscoRule,
    inner_opt: optax.GradientTransformation,
    critic: ValueFunction,
    critic_opt: optax.GradientTransformation,
    *,
    horizon: int,
    num_episodes: int,
    discount: Scalar = 0.997,
    trace: Scalar = 0.95,
    max_value: Scalar = 300.0,
    value_weight: Scalar = 0.2,
    averaging: Scalar = 0.9,
    outer_discount: Scalar = 0.99,
    outer_trace: Scalar = 0.96,
    entropy_weight: Scalar = 1e-2,
    prediction_entropy: Scalar = 1e-3,
    target_penalty: Scalar = 1e-3,
    policy_divergence: Scalar = 1e-2,
) -> System:
    """The lifetime of an agent that learns by a rule; `theta` is the rule's.

    Args:
        environment: where tasks come from; every lifetime draws a new one.
        agent: the agent, with as many predictions as the rule has.
        rule: the rule, from `disco_rule` or written by hand.
        inner_opt: of the agent; `metaopt.optimizers.disco_adam` in the paper.
        critic: the value function that judges.
        critic_opt: its optimizer.
        horizon: actions of an episode at most; values go on after one that is cut off. Static.
        num_episodes: episodes per update; twice as many judge it. Static.
        discount: γ of the agent's values. Traced.
        trace: λ of the agent's values. Traced.
        max_value: the end of the grid of values, after their square root. Traced.
        value_weight: w. Traced.
        averaging: how much of its past the moving average keeps per update. Traced.
        outer_discount: γ of the returns that judge. Traced.
        outer_trace: λ of the returns that judge. Traced.
        entropy_weight: weight of the agent's entropy in the meta-loss. Traced.
        prediction_entropy: weight of the entropies of y and z. Traced.
        target_penalty: weight of the squared mean of the logits of each target. Traced.
        policy_divergence: weight of KL(π̄ ‖ π̂), π̄ being the policy of the average. Traced.

    Returns:
        A system that never ends by itself, of `DiscoState`. A step is one update, and reports minus
        the discounted return after it, regularised.

    Raises:
        ValueError: if a count is below 1.
    """
    at_least_one("disco_rl", horizon=horizon, num_episodes=num_episodes)
    read = _reader(agent, discount=discount, trace=trace, max_value=max_value)
    agent_loss = _agent_loss(agent, value_weight)
    regulariser = _regulariser(target_penalty=target_penalty, policy_divergence=policy_divergence)
    play = player(environment, agent, horizon=horizon)
    judge = critic_judge(
        play,
        agent,
        critic,
        critic_opt,
        num_episodes=2 * num_episodes,
        discount=outer_discount,
        trace=outer_trace,
        entropy_weight=entropy_weight,
        prediction_entropy=prediction_entropy,
    )

    def init(theta, data, key, *, num_steps=None):
        del theta, data, num_steps
        key_task, key_params, key_critic = jax.random.split(key, 3)
        params = agent.init(key_params)
        return DiscoState(
            task_params=environment.sample(key_task),
            params=params,
            opt_state=inner_opt.init(params),
            memory=rule.start(),
            average=params,
            scale=no_averages(),
            judge=judge.init(key_critic),
        )

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        del data
        key_play, key_judge = jax.random.split(key)
        episodes, observations = play(state.params, state.task_params, key_play, num_episodes)
        inputs, scale = read(state, episodes, observations)
        targets, memory = rule.apply(theta, state.memory, inputs)
        num_bins = inputs.outputs.value_bins.shape[-1]
        lesson = _Lesson(
            targets,
            jax.lax.stop_gradient(inputs.outputs.policy[:, 1:]),
            two_hot(inputs.values.target, num_bins, max_value),
        )
        (_, _), grads = value_and_grad(agent_loss, has_aux=True)(state.params, episodes, lesson)
        updates, opt_state = inner_opt.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = jax.tree.map(
            lambda old, new: averaging * old + (1 - averaging) * new, state.average, state.params
        )
        loss, judged = judge.step(
            params, state.judge, state.task_params, (episodes, observations), key_judge
        )
        average_policy = inputs.average.policy[:, :-1]
        loss = loss + regulariser(targets, average_policy, episodes.active)
        new = DiscoState(state.task_params, params, opt_state, memory, average, scale, judged)
        return tree.cast_like(new, state), StepInfo(loss, jnp.array(False))

    return System(init, step)


def _reader(
    agent: DiscoAgent, *, discount: Scalar, trace: Scalar, max_value: Scalar
) -> Callable[..., tuple[DiscoInputs, Averages]]:
    """`(state, episodes, observations)` to what the rule is given, and the scale of advantages."""
    outputs_of = jax.vmap(jax.vmap(agent.apply, (None, 0)), (None, 0))

    def read(state, episodes, observations):
        outputs = outputs_of(state.params, observations)
        average = outputs_of(state.average, observations)
        constant, average_constant = jax.lax.stop_gradient((outputs, average))
        behaviour = constant.policy[:, :-1]
        values = evaluate(
            episodes.rewards,
            discount * (~episodes.done).astype(episodes.rewards.dtype),
            episodes.actions,
            constant.policy,
            behaviour,
            constant.value_bins,
            average_constant.value_bins,
            trace=trace,
            max_value=max_value,
        )
        scale = update_averages(state.scale, values.advantage, episodes.active)
        values = values._replace(
            normalised_advantage=normalised(scale, values.advantage),
            normalised_action_advantage=normalised(scale, values.action_advantage),
        )
        return DiscoInputs(episodes, outputs, average, behaviour, values), scale

    return read


def _agent_loss(agent: DiscoAgent, value_weight: Scalar) -> Callable[..., tuple[Array, tuple]]:
    """`(params, episodes, lesson) -> (loss, ())`."""
    outputs_of = jax.vmap(jax.vmap(agent.apply, (None, 0)), (None, 0))

    def loss(params, episodes, lesson):
        outputs = outputs_of(params, episodes.observations)

        def chosen(x):
            return of_actions(x, episodes.actions)

        goes_on = (~episodes.done).astype(lesson.values.dtype)
        log_values = jax.nn.log_softmax(chosen(outputs.value_bins))
        each = (
            divergence(lesson.targets.policy, outputs.policy)
            + divergence(lesson.targets.y, outputs.y)
            + divergence(lesson.targets.z, chosen(outputs.z))
            + goes_on * divergence(lesson.next_policy, chosen(outputs.next_policy))
            - value_weight * jnp.sum(lesson.values * log_values, axis=-1)
        )
        return mean_over(each, episodes.active), ()

    return loss


def _regulariser(
    *, target_penalty: Scalar, policy_divergence: Scalar
) -> Callable[..., Float[Array, ""]]:
    """`(targets, average_policy, active) -> scalar`, added to what judges the rule."""

    def value(targets, average_policy, active):
        means = [mean_over(jnp.mean(x, axis=-1), active) for x in targets]
        apart = divergence(jax.lax.stop_gradient(average_policy), targets.policy)
        return target_penalty * sum(x**2 for x in means) + policy_divergence * mean_over(
            apart, active
        )

    return value
