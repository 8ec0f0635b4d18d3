"""Policy gradients as a task family: its loss is minus the return, whose derivative is estimated.

    ∇J = E Σ_t ∇ log π(a_t | o_t) A_t,    A_t = G_t − b_t

    "reinforce"   L = −Σ_t log π(a_t) A_t
    "dice"        L = −Σ_t [□(W_t) − □(W_{t−1})] A_t,    W_t = Σ_{s ≤ t} log π(a_s)

where □(W) = exp(W − stop(W)) is 1 and its derivative that of W. Both have the same gradient;
differentiated again, the first takes the actions that were drawn for fixed, and the second has the
Hessian of the expected return in expectation (where A is a sum of rewards, λ = 1). Williams 1992,
doi:10.1007/BF00992696; Foerster et al. 2018, arXiv:1802.05098, in the form with advantages of
Farquhar et al. 2019, arXiv:1909.10549. As usual, the factor γ^t of ∇J is left out.

As a family it composes: a policy is adapted by `maml`, trained by any optimizer, judged by
`few_shot_scores`. The loss plays episodes of its own, on-policy, with the key that it is given.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.algorithms._returns import lambda_returns, linear_baseline, mean_baseline
from metaopt.core import Scalar, TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks import Environment, Policy, rollout

Surrogate = Literal["reinforce", "dice"]
Baseline = Literal["none", "mean", "linear"]


class PolicyGradientInfo(NamedTuple):
    """What the loss reports.

    Attributes:
        episode_return: sum of rewards, without discount, averaged over the episodes.
        log_likelihood: of all actions of all episodes, differentiable.
    """

    episode_return: Float[Array, ""]
    log_likelihood: Float[Array, ""]


@checked
def policy_gradient(
    environment: Environment,
    policy: Policy,
    *,
    horizon: int,
    num_episodes: int = 20,
    discount: Scalar = 0.99,
    trace: Scalar = 1.0,
    baseline: Baseline = "linear",
    normalise: bool = False,
    surrogate: Surrogate = "reinforce",
) -> TaskFamily:
    """Minimises minus the expected return by gradients from sampled episodes.

    Args:
        environment: a family of environments.
        policy: what is trained.
        horizon: actions of an episode at most; nothing counts after it. Static.
        num_episodes: episodes per loss. Static.
        discount: γ. Traced.
        trace: λ of the returns, which uses the baseline as the value. Traced.
        baseline: b: "none"; "mean", over the other episodes at the same time; "linear", fitted to
            observations and time. A constant to derivatives. Static.
        normalise: whether advantages are shifted to mean 0 and scaled to standard deviation 1,
            which makes the scale of rewards a part of the learning rate. Static.
        surrogate: "reinforce" or "dice". Static.

    Returns:
        A family with `data = ()`, batches `()`, `params` of the policy and `aux` a
        `PolicyGradientInfo`. The value of the loss is minus the mean discounted return.

    Raises:
        ValueError: if a count is below 1, a choice is unknown, or "mean" has one episode.
    """
    name = "policy_gradient"
    at_least_one(name, horizon=horizon, num_episodes=num_episodes)
    for setting, value, known in (
        ("baseline", baseline, Baseline),
        ("surrogate", surrogate, Surrogate),
    ):
        if value not in get_args(known):
            raise ValueError(
                f"{name}: {setting}={value!r} is unknown; choose from {get_args(known)}."
            )
    if baseline == "mean" and num_episodes < 2:
        raise ValueError(f"{name}: baseline='mean' has no other episode; use num_episodes=2.")
    play = rollout(environment, policy, horizon=horizon)
    advantages_of = _advantages(discount, trace, baseline, normalise)

    def loss(params, task_params, batch, key):
        del batch
        keys = jax.random.split(key, num_episodes)
        fixed = jax.lax.stop_gradient(params)
        episodes = jax.vmap(play, (None, None, 0))(fixed, task_params, keys)
        value, advantages = jax.lax.stop_gradient(advantages_of(episodes))
        each_step = jax.vmap(jax.vmap(policy.log_prob, (None, 0, 0)), (None, 0, 0))
        log_probs = each_step(params, episodes.observations, episodes.actions)
        log_probs = jnp.where(episodes.active, log_probs.astype(advantages.dtype), 0)
        weights = _box_differences(log_probs) if surrogate == "dice" else log_probs
        gain = jnp.sum(weights * advantages) / num_episodes
        info = PolicyGradientInfo(
            jnp.sum(jax.lax.stop_gradient(episodes.rewards)) / num_episodes, jnp.sum(log_probs)
        )
        return -value - (gain - jax.lax.stop_gradient(gain)), info

    return TaskFamily(
        sample=environment.sample,
        init=lambda task_params, key: policy.init(key),
        batch=lambda data, task_params, key: (),
        loss=loss,
    )


def _advantages(discount, trace, baseline, normalise):
    """`(episodes) -> (mean discounted return, advantages)`; 0 after an episode's end."""

    def advantages_of(episodes):
        rewards, active = episodes.rewards, episodes.active
        goes_on = jnp.concatenate([active[:, 1:], jnp.zeros_like(active[:, :1])], axis=1)
        discounts = discount * goes_on.astype(rewards.dtype)
        nothing = jnp.zeros_like(rewards)
        returns_of = jax.vmap(lambda_returns, (0, 0, 0, None))
        plain = returns_of(rewards, discounts, nothing, 1.0)
        values = nothing
        if baseline == "mean":
            values = mean_baseline(plain, active)
        elif baseline == "linear":
            values = linear_baseline(episodes.observations, plain, active)
        next_values = jnp.concatenate([values[:, 1:], nothing[:, :1]], axis=1)
        advantages = returns_of(rewards, discounts, next_values, trace) - values
        if normalise:
            advantages = _normalised(advantages, active)
        return jnp.mean(plain[:, 0]), jnp.where(active, advantages, 0)

    return advantages_of


def _normalised(advantages, active):
    """Mean 0 and variance 1 over the steps that count."""
    count = jnp.maximum(jnp.sum(active), 1)
    centred = jnp.where(active, advantages - jnp.sum(jnp.where(active, advantages, 0)) / count, 0)
    variance = jnp.sum(centred**2) / count
    return centred * jax.lax.rsqrt(variance + 1e-8)


def _box_differences(log_probs: Float[Array, "episodes T"]) -> Float[Array, "episodes T"]:
    """□(W_t) − □(W_{t−1}), of which the first is □(W_0) − 1: zeros with derivatives."""
    cumulative = jnp.cumsum(log_probs, axis=1)
    boxes = jnp.exp(cumulative - jax.lax.stop_gradient(cumulative))
    return boxes - jnp.concatenate([jnp.ones_like(boxes[:, :1]), boxes[:, :-1]], axis=1)
