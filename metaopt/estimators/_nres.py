"""Noise-reusing evolution strategies (NRES, also ES-Single).

As PES, but each task keeps one perturbation e ~ N(0, σ² I) for its whole trajectory, so that no
noise accumulates. In a window of K steps, with differences d_k = ℓ_k(θ + e) − ℓ_k(θ − e):

    g = e/(2σ²K) · Σ_k d_k,      averaged over tasks;  a new e with each new trajectory

Unbiased for the loss smoothed by one perturbation per trajectory; noise of one window does not meet
the losses of another. Li et al. 2023 (NeurIPS), arXiv:2304.12180; found independently by Vicol,
Kolter and Swersky 2023 (ICML), arXiv:2304.11153.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt import tree
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


class NRESState(NamedTuple):
    """What is carried between windows.

    Attributes:
        arms: the two arms of each task, leaves `[num_tasks, 2, ...]`.
        eps: the perturbation of each task's trajectory, leaves `[num_tasks, ...]` like `theta`.
    """

    arms: Episode
    eps: PyTree


@checked
def nres(
    system: System,
    *,
    sigma: Scalar = 0.01,
    truncation: int,
    horizon: int | Horizon,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    sign: Scalar | None = None,
    ranks: Scalar | None = None,
    stagger: bool = True,
) -> Estimator:
    """Estimates the gradient of the σ-smoothed loss of whole trajectories from windows.

    Args:
        system: inner training.
        sigma: perturbation scale σ, in units of `theta`. Traced.
        truncation: K, inner steps per estimate. Static.
        horizon: inner steps until reset: an int or a `Horizon`, in multiples of `truncation`.
            Static.
        num_tasks: tasks, one antithetic pair each. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`; fewer
            need less memory, and on CPUs run faster where all do not fit the cache. None: all.
            Static.
        sign: the constant c of `sign(Σ_k d_k) · c`, which replaces the mean difference of a window.
            Traced; None: the mean difference itself.
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
    check_positive("nres", sigma=sigma)
    check_transforms("nres", sign, ranks)
    check_tasks("nres", num_tasks, tasks_at_once)
    run = episodes(system, truncation=truncation, horizon=horizon, stagger=stagger, name="nres")

    def init(theta, data, key):
        def one_task(key):
            key_start, key_eps = jax.random.split(key)
            return run.begin(theta, data, key_start), perturbation(theta, sigma, key_eps)

        start, eps = jax.vmap(one_task)(jax.random.split(key, num_tasks))
        return NRESState(jax.tree.map(lambda x: jnp.stack([x, x], axis=1), start), eps)

    def one_task(theta, state, data, key):
        key_eps, key_window = jax.random.split(key)
        is_new = state.arms.clock[0] >= state.arms.length[0]
        eps = tree.where(is_new, perturbation(theta, sigma, key_eps), state.eps)
        # Both arms see the same task, batches and resets.
        arms, window = jax.vmap(run.window, in_axes=(0, 0, None, None))(
            antithetic(theta, eps), state.arms, data, key_window
        )
        losses = jnp.mean(window.loss, axis=1)
        difference = losses[0] - losses[1]
        slope, finite = finite_or_zero(transform_pair(difference, sign, ranks))
        grad = optax.tree.scale(slope / (2 * sigma**2), eps)
        spread = jnp.abs(finite_or_zero(difference)[0])
        outputs = (grad, losses, finite, window.frozen, spread)
        return outputs, NRESState(arms, eps)

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

    return checked_estimator("nres", init, estimate)
