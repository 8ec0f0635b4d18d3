"""Evolution strategies whose candidates meet on the same tasks.

Candidates θ ± eᵢ, eᵢ ~ N(0, σ² I), are all run on the same M tasks with the same keys; losses
are made comparable within each task, across the candidates, before tasks are averaged:

    f_im = (L_m(θ_i) − mean_i) / std_i,    f_i = mean or median over m,
    g = 1/(2Nσ²) · Σᵢ [f(θ + eᵢ) − f(θ − eᵢ)] eᵢ

so that each task counts alike, whatever the scale of its loss. Lange et al. 2022,
arXiv:2211.11260, §4. `es` draws a task per pair instead: it needs fewer trajectories and no shaping
to be unbiased, but sees tasks in the scales of their losses. Without shaping this is the gradient
of the σ-smoothed meta-loss, without bias.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Estimator, MetaLoss, Scalar, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import (
    antithetic,
    as_episode_loss,
    average,
    check_count,
    check_positive,
    perturbation,
)
from metaopt.unroll import Horizon, Objective, as_horizon, sample_length

Shaping = Literal["z_score", "ranks", "none"]
Pooling = Literal["mean", "median"]


@checked
def population_es(
    problem: System | MetaLoss,
    *,
    sigma: Scalar = 0.01,
    horizon: int | Horizon | None = None,
    num_pairs: int = 32,
    num_tasks: int = 8,
    objective: Objective = "last",
    shaping: Shaping = "z_score",
    pooling: Pooling = "mean",
    ranks: Scalar | None = None,
) -> Estimator:
    """Estimates a descent direction of losses that are shaped within every task.

    Args:
        problem: a System, or a pure `meta_loss(theta, data, key) -> scalar`, which need not be
            differentiable. A key stands for a task.
        sigma: perturbation scale σ, in units of `theta`. Traced.
        horizon: inner steps of a trajectory, for a System: an int or a `Horizon`, of which one
            length is drawn for all. Static.
        num_pairs: antithetic pairs N of candidates. Static.
        num_tasks: tasks M that each candidate is run on. Static.
        objective: of a System's trajectory: "mean", "last" or "min". Static.
        shaping: of the 2N losses of a task: their z-scores, their centred ranks, or none; a loss
            that is not finite counts as the task's worst. Static.
        pooling: of the shaped losses of a candidate: their mean or median. Static.
        ranks: the constant c that multiplies differences of centred ranks of the pooled losses,
            which replace their differences. Traced; None: not ranked.

    Returns:
        An estimator without state whose `grad` has the structure, shapes and dtypes of `theta`.
        `loss` is the unshaped one; `info.nonfinite` is the fraction of pairs with a loss that was
        not finite, and `info.spread` that of pooled, shaped losses.

    Raises:
        ValueError: for a non-positive `sigma` or `ranks`, counts below 1, unknown choices, a System
            without a horizon or a function with one.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_positive("population_es", sigma=sigma, **({} if ranks is None else {"ranks": ranks}))
    check_count("population_es", num_pairs=num_pairs, num_tasks=num_tasks)
    for name, choice, choices in (("shaping", shaping, Shaping), ("pooling", pooling, Pooling)):
        if choice not in get_args(choices):
            raise ValueError(
                f"population_es: {name}={choice!r} is unknown; choose from {get_args(choices)}."
            )
    episode_loss = as_episode_loss("population_es", problem, horizon=horizon, objective=objective)
    lengths = None if horizon is None else as_horizon(horizon, name="population_es")
    pool = jnp.mean if pooling == "mean" else jnp.median

    def init(theta, data, key):
        del data, key
        return ()

    def estimate(theta, state, data, key):
        key_length, key_eps, key_tasks = jax.random.split(key, 3)
        length = None if lengths is None else sample_length(lengths, key_length)
        eps = jax.vmap(lambda key: perturbation(theta, sigma, key))(
            jax.random.split(key_eps, num_pairs)
        )
        on_tasks = jax.vmap(episode_loss, in_axes=(None, None, 0, None))
        of_arms = jax.vmap(on_tasks, in_axes=(0, None, None, None))
        of_pairs = jax.vmap(
            lambda eps, keys: of_arms(antithetic(theta, eps), data, keys, length), (0, None)
        )
        losses, info = of_pairs(eps, jax.random.split(key_tasks, num_tasks))

        pooled = pool(shaped(losses, shaping), axis=-1)
        spread = jnp.abs(pooled[:, 0] - pooled[:, 1])
        if ranks is not None:
            pooled = ranks * centred_ranks(pooled.ravel()).reshape(pooled.shape)
        slope = pooled[:, 0] - pooled[:, 1]
        grads = jax.tree.map(
            lambda e: (slope / (2 * sigma**2)).reshape(-1, *[1] * (e.ndim - 1)) * e, eps
        )
        finite = jnp.all(jnp.isfinite(losses), axis=(1, 2))
        loss = jnp.mean(losses, axis=(1, 2))
        steps = 0 if length is None else 2 * num_pairs * num_tasks * length
        return average(theta, grads, loss, finite, info.frozen, spread, inner_steps=steps), state

    return checked_estimator("population_es", init, estimate)


def shaped(
    losses: Float[Array, "pairs 2 tasks"], shaping: Shaping
) -> Float[Array, "pairs 2 tasks"]:
    """Losses made comparable within each task; the worst finite one for those that are not."""

    def one_task(losses):
        finite = jnp.isfinite(losses)
        worst = jnp.max(jnp.where(finite, losses, -jnp.inf))
        losses = jnp.where(finite, losses, jnp.where(jnp.isfinite(worst), worst, 0))
        if shaping == "ranks":
            return centred_ranks(losses)
        if shaping == "z_score":
            away = losses - jnp.mean(losses)
            # The largest deviation is divided out first, so that no scale under- or overflows.
            largest = jnp.max(jnp.abs(away))
            away = away / jnp.where(largest > 0, largest, 1)
            return away * jax.lax.rsqrt(jnp.where(largest > 0, jnp.mean(away**2), 1))
        return losses

    flat = losses.reshape(-1, losses.shape[-1])
    return jax.vmap(one_task, in_axes=1, out_axes=1)(flat).reshape(losses.shape)


def centred_ranks(losses: Float[Array, " n"]) -> Float[Array, " n"]:
    """Ranks spread evenly over [−½, ½]; equal losses share their mean rank."""
    this, other = losses[:, None], losses[None, :]
    # Nothing is compared with itself: where a compiler computes a loss twice, in two fused loops,
    # it may differ from itself by rounding.
    others = ~jnp.eye(losses.size, dtype=bool)
    below = jnp.sum((other < this) & others, axis=1)
    ties = jnp.sum((other == this) & others, axis=1)
    return (below + 0.5 * ties).astype(losses.dtype) / (losses.size - 1) - 0.5
