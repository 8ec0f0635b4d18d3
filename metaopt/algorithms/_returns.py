"""Returns: what a trajectory was worth from each step on, and baselines for it.

    G_t = r_t + γ_t [(1 − λ) v_{t+1} + λ G_{t+1}],    G_T = v_T

With λ = 1 and v = 0 the discounted sum of rewards, with λ = 0 the one-step target. γ_t is 0 where
an episode ends. Sutton and Barto 2018, Reinforcement Learning: An Introduction, §12.1; Schulman et
al. 2015, arXiv:1506.02438: G − v is their generalised advantage.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metaopt.core import Scalar, checked

# Of the sum of squared features, so that the normal equations can be solved in float32.
_RIDGE = 1e-5


@checked
def lambda_returns(
    rewards: Float[Array, " T"],
    discounts: Float[Array, " T"],
    next_values: Float[Array, " T"],
    trace: Scalar,
) -> Float[Array, " T"]:
    """Returns of one trajectory, differentiable in every argument.

    Args:
        rewards: r_t.
        discounts: γ_t, which multiplies what follows step t.
        next_values: v_{t+1}, the value after step t.
        trace: λ, from 0 to 1.

    Returns:
        G_t for every step.
    """

    def one(following, step):
        reward, discount, value = step
        result = reward + discount * ((1 - trace) * value + trace * following)
        return result, result

    dtype = jnp.result_type(rewards, discounts, next_values, trace)
    start = next_values[-1].astype(dtype)
    return jax.lax.scan(one, start, (rewards, discounts, next_values), reverse=True)[1]


def mean_baseline(
    returns: Float[Array, "episodes T"], active: Bool[Array, "episodes T"]
) -> Float[Array, "episodes T"]:
    """The mean return at the same time in the other episodes: independent of an episode's actions.

    Zero where there is no other episode.
    """
    returns, weights = jnp.where(active, returns, 0), active.astype(returns.dtype)
    others = jnp.sum(weights, axis=0, keepdims=True) - weights
    return (jnp.sum(returns, axis=0, keepdims=True) - returns) / jnp.maximum(others, 1)


def linear_baseline(
    observations: Float[Array, "episodes T size"],
    returns: Float[Array, "episodes T"],
    active: Bool[Array, "episodes T"],
) -> Float[Array, "episodes T"]:
    """Ridge regression of returns on observation, its square, time, its square and cube, and 1.

    Duan et al. 2016, arXiv:1604.06778, §5.1. Fitted to the very episodes that it is a baseline of.
    """
    horizon = returns.shape[1]
    time = jnp.arange(horizon, dtype=returns.dtype)[:, None] / horizon
    of_time = jnp.concatenate([time, time**2, time**3, jnp.ones_like(time)], axis=1)
    of_time = jnp.broadcast_to(of_time[None], (*returns.shape, 4))
    observations = observations.astype(returns.dtype)
    features = jnp.concatenate([observations, observations**2, of_time], axis=-1)
    rows = jnp.where(active[..., None], features, 0).reshape(-1, features.shape[-1])
    gram = rows.T @ rows
    ridge = _RIDGE * len(rows) * jnp.eye(len(gram), dtype=gram.dtype)
    targets = jnp.where(active, returns, 0).reshape(-1)
    weights = jnp.linalg.solve(gram + ridge, rows.T @ targets)
    return features @ weights
