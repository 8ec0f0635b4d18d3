"""Learned policy gradient (LPG): a network says what an agent should learn from its episodes.

An agent has a policy π and a categorical prediction y, whose meaning is up to the rule. A network
reads every episode backwards and gives each step a weight and a target:

    x_t = (r_t, done_t, π(a_t | o_t), φ(y(o_t)), φ(y(o_{t+1})))
    h_t = GRU(x_t, h_{t+1}),    (p̂_t, ŷ_t) = heads(h_t)
    agent:    ∇ mean over steps of  −p̂_t log π(a_t) + c KL(y(o_t), ŷ_t),    x_t, p̂, ŷ constants
    network:  −return after the update, by the policy gradient, and regularisers

Oh et al. 2020, arXiv:2007.08794. Agents are inner training: a lifetime is a trajectory of the
system below, a population the tasks of an estimator, K updates its truncation,

    estimators.truncated_backprop(system, truncation=K, horizon=lifetime, num_tasks=population)

Differs from the paper: a GRU instead of an LSTM; no discount among the inputs; every one of the K
updates is judged, not the last one alone; advantages are against other episodes, not a value
network.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.algorithms._categorical import entropy as entropy_of
from metaopt.algorithms._categorical import log_prob_of, mean_over
from metaopt.algorithms._policy_gradient import policy_gradient
from metaopt.core import Params, Scalar, StepInfo, System, TaskParams, Theta, checked
from metaopt.data._check import at_least_one
from metaopt.tasks import Environment, Trajectory, policy_of_logits, rollout
from metaopt.tasks._mlp import dense_layers


class LPGAgent(NamedTuple):
    """A policy with predictions.

    Attributes:
        init: `(key) -> params`.
        apply: `(params, observation) -> (logits of actions, logits of predictions)`.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[[Params, Array], tuple[Array, Array]]


class LPGTargets(NamedTuple):
    """What the network says of an episode.

    Attributes:
        weights: p̂.
        predictions: ŷ, as log-probabilities.
    """

    weights: Float[Array, " T"]
    predictions: Float[Array, "T predictions"]


class LPGRule(NamedTuple):
    """A learned rule.

    Attributes:
        init: `(key) -> theta`.
        apply: `(theta, episode, action_probs, predictions) -> LPGTargets`, the predictions y being
            T + 1 rows of probabilities.
    """

    init: Callable[[PRNGKeyArray], Theta]
    apply: Callable[[Theta, Trajectory, Array, Array], LPGTargets]


class LPGState(NamedTuple):
    """An agent in its lifetime.

    Attributes:
        task_params: its task.
        params: what it trains.
        opt_state: of its optimizer.
    """

    task_params: TaskParams
    params: Params
    opt_state: Any


@checked
def lpg_agent(
    observation_size: int,
    num_actions: int,
    *,
    num_predictions: int = 8,
    hidden: Sequence[int] = (),
    activation: str = "relu",
) -> LPGAgent:
    """A perceptron whose outputs are the logits of actions and predictions.

    Args:
        observation_size: length of an observation. Static.
        num_actions: number of actions. Static.
        num_predictions: length of y. Static.
        hidden: widths of the hidden layers. Static.
        activation: as in `metaopt.tasks.mlp`. Static.

    Returns:
        An agent.

    Raises:
        ValueError: if a size is below 1 or `activation` is unknown.
    """
    sizes = {"observation_size": observation_size, "num_actions": num_actions}
    at_least_one("lpg_agent", **sizes, num_predictions=num_predictions)
    widths = (observation_size, *hidden, num_actions + num_predictions)
    init, apply = dense_layers("lpg_agent", widths, activation)

    def outputs(params, observation):
        both = apply(params, observation[None])[0]
        return both[:num_actions], both[num_actions:]

    return LPGAgent(init, outputs)


@checked
def lpg_rule(*, num_predictions: int = 8, hidden: int = 32, embedding: int = 16) -> LPGRule:
    """The network of a rule; it does not depend on the number of actions.

    Args:
        num_predictions: length of y. Static.
        hidden: width of the recurrent cell. Static.
        embedding: width of the hidden layer of φ, whose output is a number. Static.

    Returns:
        A rule.

    Raises:
        ValueError: if a size is below 1.
    """
    sizes = {"num_predictions": num_predictions, "hidden": hidden, "embedding": embedding}
    at_least_one("lpg_rule", **sizes)
    name, num_inputs = "lpg_rule", 5
    embed_init, embed = dense_layers(name, (num_predictions, embedding, 1), "relu")
    gates_init, gates = dense_layers(name, (num_inputs + hidden, 2 * hidden), "tanh")
    cell_init, cell = dense_layers(name, (num_inputs + hidden, hidden), "tanh")
    heads_init, heads = dense_layers(name, (hidden, 1 + num_predictions), "tanh")

    def init(key):
        inits = {"embed": embed_init, "gates": gates_init, "cell": cell_init, "heads": heads_init}
        keys = jax.random.split(key, len(inits))
        return {part: make(k) for (part, make), k in zip(inits.items(), keys, strict=True)}

    def gru(theta, state, inputs):
        update, reset = jnp.split(
            jax.nn.sigmoid(gates(theta["gates"], jnp.concatenate([inputs, state])[None])[0]), 2
        )
        new = jnp.tanh(cell(theta["cell"], jnp.concatenate([inputs, reset * state])[None])[0])
        return (1 - update) * state + update * new

    def apply(theta, episode, action_probs, predictions):
        embedded = embed(theta["embed"], predictions)[:, 0]
        columns = [episode.rewards, episode.done, action_probs, embedded[:-1], embedded[1:]]
        inputs = jnp.stack([x.astype(embedded.dtype) for x in columns], axis=1)

        def one(state, step):
            inputs, done = step
            # What comes after the end of an episode is not its future.
            state = gru(theta, jnp.where(done, 0, state), inputs)
            return state, state

        start = jnp.zeros(hidden, embedded.dtype)
        _, states = jax.lax.scan(one, start, (inputs, episode.done), reverse=True)
        outputs = heads(theta["heads"], states)
        return LPGTargets(outputs[:, 0], jax.nn.log_softmax(outputs[:, 1:]))

    return LPGRule(init, apply)


@checked
def learned_policy_gradient(
    environment: Environment,
    agent: LPGAgent,
    rule: LPGRule,
    inner_opt: optax.GradientTransformation,
    *,
    horizon: int,
    num_episodes: int,
    discount: Scalar = 0.99,
    prediction_weight: Scalar = 0.5,
    entropy: Scalar = 0.05,
    prediction_entropy: Scalar = 1e-3,
    weight_penalty: Scalar = 5e-3,
    prediction_penalty: Scalar = 1e-3,
) -> System:
    """The lifetime of an agent that learns by a rule; `theta` is the rule's.

    Args:
        environment: where tasks come from; every lifetime draws a new one.
        agent: the agent, with as many predictions as the rule has.
        rule: the rule.
        inner_opt: any optax optimizer.
        horizon: actions of an episode at most. Static.
        num_episodes: episodes per update, at least 2, and as many to judge it. Static.
        discount: of the returns that judge. Traced.
        prediction_weight: c, the weight of the predictions in the agent's loss. Traced.
        entropy: weight of the agent's entropy in the meta-loss. Traced.
        prediction_entropy: weight of the entropy of its predictions. Traced.
        weight_penalty: weight of the mean p̂². Traced.
        prediction_penalty: weight of the mean |ŷ|². Traced.

    Returns:
        A system that never ends by itself, of `LPGState`. A step is one update, and reports minus
        the discounted return after it, regularised.

    Raises:
        ValueError: if `horizon < 1` or `num_episodes < 2`.
    """
    policy = policy_of_logits(agent.init, lambda params, x: agent.apply(params, x)[0])
    judge = policy_gradient(
        environment,
        policy,
        horizon=horizon,
        num_episodes=num_episodes,
        discount=discount,
        baseline="mean",
    )
    play = rollout(environment, policy, horizon=horizon)
    targets_of = _targets(agent, rule)
    agent_loss = _agent_loss(agent, prediction_weight)
    regulariser = _regulariser(
        agent,
        entropy=entropy,
        prediction_entropy=prediction_entropy,
        weight_penalty=weight_penalty,
        prediction_penalty=prediction_penalty,
    )

    def init(theta, data, key, *, num_steps=None):
        del theta, data, num_steps
        key_task, key_params = jax.random.split(key)
        params = agent.init(key_params)
        return LPGState(environment.sample(key_task), params, inner_opt.init(params))

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        del data
        key_play, key_judge = jax.random.split(key)
        task_params, params, opt_state = state
        # The rule sees numbers: how they came about is not a path of the meta-gradient.
        fixed = jax.lax.stop_gradient(params)
        keys = jax.random.split(key_play, num_episodes)
        episodes = jax.vmap(play, (None, None, 0))(fixed, task_params, keys)
        targets = targets_of(theta, fixed, episodes)
        (_, _), grads = value_and_grad(agent_loss, has_aux=True)(params, episodes, targets)
        updates, opt_state = inner_opt.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        loss, _ = judge.loss(params, task_params, (), key_judge)
        loss = loss + regulariser(params, episodes, targets)
        return LPGState(task_params, params, opt_state), StepInfo(loss, jnp.array(False))

    return System(init, step)


def _outputs_of(agent: LPGAgent) -> Callable[..., tuple[Array, Array]]:
    """`(params, observations)` to logits, for episodes and their steps."""
    return jax.vmap(jax.vmap(agent.apply, (None, 0)), (None, 0))


def _targets(agent: LPGAgent, rule: LPGRule) -> Callable[..., LPGTargets]:
    """`(theta, params, episodes)` to what the rule says of them, the episode axis first."""
    outputs_of = _outputs_of(agent)

    def targets_of(theta, params, episodes):
        final = episodes.final_observation[:, None]
        observations = jnp.concatenate([episodes.observations, final], axis=1)
        logits, predictions = outputs_of(params, observations)
        probs = jnp.exp(log_prob_of(logits[:, :-1], episodes.actions))
        return jax.vmap(rule.apply, (None, 0, 0, 0))(
            theta, episodes, probs, jax.nn.softmax(predictions)
        )

    return targets_of


def _agent_loss(agent: LPGAgent, prediction_weight: Scalar) -> Callable[..., tuple[Array, tuple]]:
    """`(params, episodes, targets) -> (loss, ())`."""
    outputs_of = _outputs_of(agent)

    def loss(params, episodes, targets):
        logits, predictions = outputs_of(params, episodes.observations)
        log_y = jax.nn.log_softmax(predictions)
        divergence = jnp.sum(jnp.exp(log_y) * (log_y - targets.predictions), axis=-1)
        each = (
            -targets.weights * log_prob_of(logits, episodes.actions)
            + prediction_weight * divergence
        )
        return mean_over(each, episodes.active), ()

    return loss


def _regulariser(
    agent: LPGAgent,
    *,
    entropy: Scalar,
    prediction_entropy: Scalar,
    weight_penalty: Scalar,
    prediction_penalty: Scalar,
) -> Callable[..., Array]:
    """`(params, episodes, targets) -> scalar`, added to what judges the rule."""
    outputs_of = _outputs_of(agent)

    def value(params, episodes, targets):
        logits, predictions = outputs_of(params, episodes.observations)
        each = (
            weight_penalty * targets.weights**2
            + prediction_penalty * jnp.sum(jnp.exp(2 * targets.predictions), axis=-1)
            - entropy * entropy_of(logits)
            - prediction_entropy * entropy_of(predictions)
        )
        return mean_over(each, episodes.active)

    return value
