"""Action values as categorical distributions, their targets, and advantages on a common scale.

    h(x) = sign(x) (√(|x| + 1) − 1) + κ x,    q(s, a) = h⁻¹(Σ_i p_i u_i),    κ = 10⁻³
    G_t = r_t + γ_t [v_{t+1} + c_{t+1} (G_{t+1} − q(s_{t+1}, a_{t+1}))]
    c_t = λ min(1, π(a_t) / μ(a_t))

with u on a grid from −u_max to u_max, v(s) = Σ_a π(a | s) q(s, a) and G_T = v_T; targets are two
neighbouring grid points whose mean is h(G). Pohlen et al. 2018, arXiv:1805.11593, for h; Bellemare
et al. 2017, arXiv:1707.06887, for the distributions; Munos et al. 2016, arXiv:1606.02647, for G.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metaopt.algorithms._categorical import log_prob_of
from metaopt.core import Scalar

_SLOPE = 1e-3
# Inside the root and beside it, so that numbers that never varied divide by something.
_ROOT_EPS, _EPS = 1e-12, 1e-6


class Averages(NamedTuple):
    """Running moments of a signal, started at 0.

    Attributes:
        mean: of its values.
        square: of their squares.
        weight: of what the averages have seen, between 0 and 1.
    """

    mean: Float[Array, ""]
    square: Float[Array, ""]
    weight: Float[Array, ""]


class DiscoValues(NamedTuple):
    """What an agent's action values say of episodes; constants to every derivative.

    Attributes:
        value: v of the agent, after the last action too.
        action_value: q of the moving average of its parameters, a number per action.
        target: G, with q and v of the moving average.
        advantage: G − v.
        normalised_advantage: the same in standard deviations from the mean.
        action_advantage: q − v, a number per action.
        normalised_action_advantage: the same on the scale of `normalised_advantage`.
    """

    value: Float[Array, "episodes T+1"]
    action_value: Float[Array, "episodes T+1 actions"]
    target: Float[Array, "episodes T"]
    advantage: Float[Array, "episodes T"]
    normalised_advantage: Float[Array, "episodes T"]
    action_advantage: Float[Array, "episodes T+1 actions"]
    normalised_action_advantage: Float[Array, "episodes T+1 actions"]


def no_averages() -> Averages:
    """Before anything was seen."""
    zero = jnp.zeros((), float)
    return Averages(zero, zero, zero)


def update_averages(
    averages: Averages,
    signal: Float[Array, "*batch"],
    active: Bool[Array, "*batch"],
    *,
    decay: Scalar = 0.99,
) -> Averages:
    """Mixes in the moments of what counts."""
    count = jnp.sum(active)
    mean = jnp.sum(jnp.where(active, signal, 0)) / count
    square = jnp.sum(jnp.where(active, signal**2, 0)) / count
    new = Averages(mean, square, jnp.ones_like(averages.weight))
    return jax.tree.map(lambda a, b: (decay * a + (1 - decay) * b).astype(a.dtype), averages, new)


def normalised(averages: Averages, signal: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """In standard deviations from the mean."""
    mean = averages.mean / averages.weight
    variance = jnp.maximum(averages.square / averages.weight - mean**2, 0)
    return (signal - mean) / (jnp.sqrt(variance + _ROOT_EPS) + _EPS)


def squash(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """h."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + _SLOPE * x


def unsquash(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """h⁻¹, arranged so that small numbers keep their digits."""
    excess = jnp.abs(x) + 1 + _SLOPE
    root = 2 * excess / (jnp.sqrt(1 + 4 * _SLOPE * excess) + 1)
    return jnp.sign(x) * (root - 1) * (root + 1)


def expected_value(
    logits: Float[Array, "*batch bins"], max_value: Scalar
) -> Float[Array, "*batch"]:
    """q of distributions over the grid."""
    grid = jnp.linspace(-1, 1, logits.shape[-1]) * max_value
    return unsquash(jax.nn.softmax(logits) @ grid.astype(logits.dtype))


def two_hot(
    values: Float[Array, "*batch"], num_bins: int, max_value: Scalar
) -> Float[Array, "*batch {num_bins}"]:
    """The distribution over two neighbouring grid points whose mean is h(value)."""
    place = (squash(values) / max_value + 1) * (num_bins - 1) / 2
    place = jnp.clip(place, 0, num_bins - 1)
    grid = jnp.arange(num_bins, dtype=place.dtype)
    distance = jnp.abs(place[..., None] - jnp.broadcast_to(grid, (*place.shape, num_bins)))
    return jnp.maximum(1 - distance, 0)


def retrace(
    rewards: Float[Array, " T"],
    discounts: Float[Array, " T"],
    chosen_values: Float[Array, " T"],
    next_values: Float[Array, " T"],
    traces: Float[Array, " T"],
) -> Float[Array, " T"]:
    """G of one episode, from q(s_t, a_t), v_{t+1} and c_t."""

    def one(excess, step):
        reward, discount, chosen, following, trace = step
        result = reward + discount * (following + excess)
        return trace * (result - chosen), result

    columns = (rewards, discounts, chosen_values, next_values, traces)
    return jax.lax.scan(one, jnp.zeros_like(next_values[0]), columns, reverse=True)[1]


def evaluate(
    rewards: Float[Array, "episodes T"],
    discounts: Float[Array, "episodes T"],
    actions: Int[Array, "episodes T"],
    logits: Float[Array, "episodes T+1 actions"],
    behaviour: Float[Array, "episodes T actions"],
    bins: Float[Array, "episodes T+1 actions bins"],
    average_bins: Float[Array, "episodes T+1 actions bins"],
    *,
    trace: Scalar,
    max_value: Scalar,
) -> DiscoValues:
    """Values of episodes; the normalised advantages are left as they are."""
    probs = jax.nn.softmax(logits)
    own = expected_value(bins, max_value)
    average = expected_value(average_bins, max_value)
    value, average_value = jnp.sum(probs * own, axis=-1), jnp.sum(probs * average, axis=-1)
    chosen = jnp.take_along_axis(average[:, :-1], actions[..., None], axis=-1)[..., 0]
    log_ratio = log_prob_of(logits[:, :-1], actions) - log_prob_of(behaviour, actions)
    traces = trace * jnp.minimum(jnp.exp(log_ratio), 1)
    target = jax.vmap(retrace)(rewards, discounts, chosen, average_value[:, 1:], traces)
    advantage = target - average_value[:, :-1]
    by_action = average - average_value[..., None]
    return DiscoValues(value, average, target, advantage, advantage, by_action, by_action)
