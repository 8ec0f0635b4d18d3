"""Truncated evolution strategies: antithetic pairs over windows of a trajectory.

    g = 1/(2Nσ²) · Σᵢ [L̄ᵢ(θ + eᵢ) − L̄ᵢ(θ − eᵢ)] eᵢ,    eᵢ ~ N(0, σ² I)

with L̄ᵢ the mean loss of task i over a window of K steps. Both arms start each window from the
same state, so the effect of θ on later windows is not seen: biased towards short horizons. The
state carried on is that of the arm at θ + e, as in Metz et al. 2019, arXiv:1810.10180, and in
the comparison of Vicol et al. 2021, arXiv:2112.13835.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Estimator, Scalar, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import (
    antithetic,
    average,
    check_positive,
    check_tasks,
    finite_or_zero,
    map_tasks,
    perturbation,
)
from metaopt.estimators._transforms import check_transforms, transform_all, transform_pair
from metaopt.unroll import Episode, Horizon, episodes


class TruncatedESState(NamedTuple):
    """Where each task stands: an episode with the task axis first."""

    episode: Episode


@checked
def truncated_es(
    system: System,
    *,
    sigma: Scalar = 0.01,
    truncation: int,
    horizon: int | Horizon | None,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    sign: Scalar | None = None,
    ranks: Scalar | None = None,
    stagger: bool = True,
) -> Estimator:
    """Estimates the gradient of the σ-smoothed loss of one window. Biased.

    Args:
        system: inner training.
        sigma: perturbation scale σ, in units of `theta`. Traced.
        truncation: K, inner steps per estimate. Static.
        horizon: inner steps until reset: an int or a `Horizon`, in multiples of `truncation`;
            None for a system that ends by itself. Static.
        num_tasks: tasks N, one antithetic pair each. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`; fewer
            need less memory, and on CPUs run faster where all do not fit the cache. None: all.
            Static.
        sign: the constant c of `sign(L̄⁺ − L̄⁻) · c`. Traced; None: the difference itself.
        ranks: the constant c that multiplies differences of centred ranks, which replace those of
            the losses. Traced; None: not ranked. Excludes `sign`.
        stagger: whether tasks start at different phases of their first trajectory. Static.

    Returns:
        An estimator whose state has the task axis first.

    Raises:
        ValueError: for a non-positive `sigma`, `sign` or `ranks`, the last two together,
            `num_tasks < 1`, or a horizon that is not a multiple of `truncation`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_positive("truncated_es", sigma=sigma)
    check_transforms("truncated_es", sign, ranks)
    check_tasks("truncated_es", num_tasks, tasks_at_once)
    run = episodes(
        system, truncation=truncation, horizon=horizon, stagger=stagger, name="truncated_es"
    )

    def init(theta, data, key):
        keys = jax.random.split(key, num_tasks)
        return TruncatedESState(jax.vmap(run.begin, in_axes=(None, None, 0))(theta, data, keys))

    def one_task(theta, state, data, key):
        key_eps, key_window = jax.random.split(key)
        eps = perturbation(theta, sigma, key_eps)
        # Both arms see the same task, batches and resets.
        arms, window = jax.vmap(run.window, in_axes=(0, None, None, None))(
            antithetic(theta, eps), state.episode, data, key_window
        )
        losses = jnp.mean(window.loss, axis=1)
        difference = losses[0] - losses[1]
        slope, finite = finite_or_zero(transform_pair(difference, sign, ranks))
        grad = optax.tree.scale(slope / (2 * sigma**2), eps)
        above = jax.tree.map(lambda x: x[0], arms)
        outputs = (grad, losses, finite, window.frozen, jnp.abs(difference))
        return outputs, TruncatedESState(above)

    def estimate(theta, state, data, key):
        outputs, state = map_tasks(
            lambda state, key: one_task(theta, state, data, key),
            state,
            key,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        outputs = transform_all(outputs, ranks)
        return average(theta, *outputs, inner_steps=2 * num_tasks * truncation), state

    return checked_estimator("truncated_es", init, estimate)
