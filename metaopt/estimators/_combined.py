"""Backpropagation and evolution strategies, combined by their variances.

Two estimates of the gradient of the same σ-smoothed loss, from the same antithetic pairs:

    backprop, reparameterised   b_i = ½ [∇L(θ + e_i) + ∇L(θ − e_i)],              e_i ~ N(0, σ² I)
    evolution strategies        s_i = [L(θ + e_i) − L(θ − e_i)] e_i / (2σ²)
    g = 1/N · Σ_i [w b_i + (1 − w) s_i],    w = Var(s) / (Var(b) + Var(s))     per coordinate of θ

with the empirical variances over the N tasks. Where backpropagation explodes w tends to 0, where
the loss is smooth to 1. Metz et al. 2019, arXiv:1810.10180, §3.3; deviation: pairs are antithetic.

Weights from the samples that they weight make the paper's estimate slightly biased, and protect
best from outliers, because an outlier lowers its own weight (`weights="pooled"`).
`weights="halves"` weights each half of the tasks by the variances in the other half: unbiased.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt.core import Estimator, MetaLoss, Scalar, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import (
    antithetic,
    as_episode_loss,
    average,
    check_positive,
    check_tasks,
    finite_or_zero,
    map_tasks,
    perturbation,
)
from metaopt.unroll import Horizon, Objective, Remat, as_horizon, sample_length

CombinedWeights = Literal["pooled", "halves"]


class CombinedInfo(NamedTuple):
    """What only this estimator reports.

    Attributes:
        backprop_weight: w, averaged over coordinates and halves.
    """

    backprop_weight: Float[Array, ""]


@checked
def combined(
    problem: System | MetaLoss,
    *,
    sigma: Scalar = 0.01,
    horizon: int | Horizon | None = None,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    weights: CombinedWeights = "pooled",
    objective: Objective = "mean",
    remat: Remat = "nested",
) -> Estimator:
    """Estimates the gradient of the σ-smoothed meta-loss from values and derivatives.

    Args:
        problem: a System, or a differentiable `meta_loss(theta, data, key) -> scalar`.
        sigma: perturbation scale σ, in units of `theta`. Traced.
        horizon: inner steps of a trajectory, for a System: an int or a `Horizon`, of which one
            length is drawn for all tasks. Static.
        num_tasks: tasks N, one antithetic pair each; even and at least 4. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`. None:
            all. Static.
        weights: "pooled" or "halves", see the module. Static.
        objective: of a System's trajectory: "mean", "last" or "min". Static.
        remat: what the backward pass keeps: "none", "step" or "nested". Static; for a System.

    Returns:
        An estimator without state; `info.aux` is a `CombinedInfo`. A coordinate in which any
        derivative is not finite has weight 0; a task whose losses are not finite contributes zero.

    Raises:
        ValueError: for a non-positive `sigma`, `num_tasks` odd or below 4, unknown `weights`, a
            System without a horizon or a function with one.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_positive("combined", sigma=sigma)
    check_tasks("combined", num_tasks, tasks_at_once)
    if num_tasks < 4 or num_tasks % 2:
        raise ValueError(
            f"combined: num_tasks={num_tasks} must be even and at least 4: variances are taken "
            f"over tasks; try num_tasks={max(4, num_tasks + num_tasks % 2)}."
        )
    if weights not in get_args(CombinedWeights):
        raise ValueError(
            f"combined: weights={weights!r} is unknown; choose from {get_args(CombinedWeights)}."
        )
    episode_loss = as_episode_loss(
        "combined", problem, horizon=horizon, objective=objective, remat=remat
    )
    lengths = None if horizon is None else as_horizon(horizon, name="combined")

    def init(theta, data, key):
        del data, key
        return ()

    def one_task(theta, data, key, length):
        key_eps, key_loss = jax.random.split(key)
        eps = perturbation(theta, sigma, key_eps)
        # Both arms see the same inner randomness, so that it cancels.
        (losses, info), slopes = jax.vmap(
            jax.value_and_grad(episode_loss, has_aux=True), in_axes=(0, None, None, None)
        )(antithetic(theta, eps), data, key_loss, length)
        slope, finite = finite_or_zero(losses[0] - losses[1])
        by_values = optax.tree.scale(slope / (2 * sigma**2), eps)
        by_slopes = jax.tree.map(lambda x: jnp.mean(x, axis=0), slopes)
        outputs = (jnp.mean(losses), finite, info.frozen, jnp.abs(slope))
        return by_slopes, by_values, outputs

    def estimate(theta, state, data, key):
        key_length, key_tasks = jax.random.split(key)
        length = None if lengths is None else sample_length(lengths, key_length)
        by_slopes, by_values, outputs = map_tasks(
            lambda _, key: one_task(theta, data, key, length),
            (),
            key_tasks,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        weight = jax.tree.map(lambda b, s: _weights(b, s, weights), by_slopes, by_values)
        grads = jax.tree.map(_mix, weight, by_slopes, by_values)
        steps = 0 if length is None else 2 * num_tasks * length
        flat = jnp.concatenate([w.ravel() for w in jax.tree.leaves(weight)])
        info = CombinedInfo(jnp.mean(flat).astype(float))
        result = average(theta, grads, *outputs, inner_steps=steps, second_order=True, aux=info)
        return result, state

    return checked_estimator("combined", init, estimate)


def _weights(by_slopes, by_values, weights: CombinedWeights) -> Float[Array, "tasks ..."]:
    """w for every task and coordinate: Var(s) / (Var(b) + Var(s))."""

    def of(slopes, values):
        slopes, values = (jnp.var(x, axis=0, ddof=1) for x in (slopes, values))
        # An overflown variance is a reason for the weight 0, too.
        finite = jnp.isfinite(slopes)
        slopes = jnp.where(finite, slopes, 0)
        total = slopes + values
        # Two estimates without any spread agree, and so count equally.
        weight = jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 0.5)
        return jnp.where(finite, weight, 0)

    if weights == "pooled":
        weight = jnp.broadcast_to(of(by_slopes, by_values), by_slopes.shape)
    else:
        half = len(by_slopes) // 2
        first = of(by_slopes[:half], by_values[:half])
        second = of(by_slopes[half:], by_values[half:])
        weight = jnp.repeat(jnp.stack([second, first]), half, axis=0)
    healthy = jnp.all(jnp.isfinite(by_slopes), axis=0, keepdims=True)
    return jnp.where(healthy, weight, 0)


def _mix(weight, by_slopes, by_values):
    return weight * jnp.where(weight > 0, by_slopes, 0) + (1 - weight) * by_values
