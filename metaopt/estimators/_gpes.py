"""Generalised persistent evolution strategies (GPES): new noise every S inner steps.

Each task has two arms and, from step to step of its trajectory, a perturbation e and the sum A of
the perturbations used so far. At step k of a trajectory, with d_k = ℓ_k(θ + e) − ℓ_k(θ − e):

    if k mod S = 0:   e ~ N(0, σ² I),   A ← A + e          (A = 0 where the trajectory starts)
    g = 1/(2σ²K) · Σ_{k in window} d_k A,                  averaged over tasks

Unbiased for the loss smoothed by noise that is constant over S steps, for every S. With S the
truncation K it is PES, with S the horizon NRES. The noise of each stretch meets the losses of all
later ones, which adds variance where their gradients differ in direction: less with longer
stretches. Li et al. 2023 (NeurIPS), arXiv:2304.12180, §3.
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
    check_count,
    check_positive,
    check_tasks,
    finite_or_zero,
    map_tasks,
    perturbation,
)
from metaopt.unroll import Episode, Horizon, as_horizon, episodes


class GPESState(NamedTuple):
    """What is carried between windows.

    Attributes:
        arms: the two arms of each task, leaves `[num_tasks, 2, ...]`.
        eps: e, the perturbation in use, leaves `[num_tasks, ...]` like `theta`.
        noise: A, the sum of the trajectory's perturbations, likewise.
    """

    arms: Episode
    eps: PyTree
    noise: PyTree


@checked
def gpes(
    system: System,
    *,
    sigma: Scalar = 0.01,
    truncation: int,
    horizon: int | Horizon,
    share: int | None = None,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    stagger: bool = True,
) -> Estimator:
    """Estimates the gradient of the σ-smoothed loss of whole trajectories from windows.

    Args:
        system: inner training.
        sigma: perturbation scale σ, in units of `theta`. Traced.
        truncation: K, inner steps per estimate. Static.
        horizon: inner steps until reset: an int or a `Horizon`, in multiples of `truncation`.
            Static.
        share: S, inner steps between new noise: a divisor or a multiple of `truncation`. At least
            the horizon: one perturbation per trajectory. None: `truncation`. Static.
        num_tasks: tasks, one antithetic pair each. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`; fewer
            need less memory, and on CPUs run faster where all do not fit the cache. None: all.
            Static.
        stagger: whether tasks start at different phases of their first trajectory. Static.

    Returns:
        An estimator whose state has the task axis first.

    Raises:
        ValueError: for a non-positive `sigma`, `num_tasks < 1`, a horizon that is not a multiple
            of `truncation`, or a `share` that is neither a divisor nor a multiple of it.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_positive("gpes", sigma=sigma)
    check_tasks("gpes", num_tasks, tasks_at_once)
    as_horizon(horizon, name="gpes", multiple_of=truncation)
    share = truncation if share is None else share
    check_count("gpes", share=share)
    if share % truncation and truncation % share:
        raise ValueError(
            f"gpes: share={share} neither divides truncation={truncation} nor is a multiple of "
            f"it; try share={truncation * max(1, round(share / truncation))}."
        )
    # Noise changes between blocks only; a window has one or several.
    block = min(share, truncation)
    num_blocks = truncation // block
    run = episodes(system, truncation=block, horizon=horizon, stagger=stagger, name="gpes")

    def init(theta, data, key):
        def one_task(key):
            key_start, key_eps = jax.random.split(key)
            start = run.begin(theta, data, key_start)
            eps = perturbation(theta, sigma, key_eps)
            # A staggered task is in the middle of a stretch of its noise.
            draws_first = start.clock % share == 0
            noise = tree.where(draws_first, optax.tree.zeros_like(eps), eps)
            arms = jax.tree.map(lambda x: jnp.stack([x, x]), start)
            return GPESState(arms, eps, noise)

        return jax.vmap(one_task)(jax.random.split(key, num_tasks))

    def one_block(theta, state, data, key):
        key_eps, key_window = jax.random.split(key)
        ended = state.arms.clock[0] >= state.arms.length[0]
        draws = ended | (state.arms.clock[0] % share == 0)
        eps = tree.where(draws, perturbation(theta, sigma, key_eps), state.eps)
        noise = tree.where(ended, optax.tree.zeros_like(eps), state.noise)
        noise = tree.where(draws, optax.tree.add(noise, eps), noise)
        # Both arms see the same task, batches and resets.
        arms, window = jax.vmap(run.window, in_axes=(0, 0, None, None))(
            antithetic(theta, eps), state.arms, data, key_window
        )
        losses = jnp.mean(window.loss, axis=1)
        slope, finite = finite_or_zero(losses[0] - losses[1])
        grad = optax.tree.scale(slope / (2 * sigma**2), noise)
        outputs = (grad, jnp.mean(losses), finite, window.frozen, jnp.abs(slope))
        return outputs, GPESState(arms, eps, noise)

    def one_task(theta, state, data, key):
        # One block uses the key as PES and NRES do, so that equal keys give equal numbers.
        if num_blocks == 1:
            return one_block(theta, state, data, key)

        # As raw numbers: a scan over a batch of keys moves their axes, which counts as using them.
        key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)

        def scanned(state, index):
            key = jax.random.wrap_key_data(key_data, impl=key_impl)
            outputs, state = one_block(theta, state, data, jax.random.fold_in(key, index))
            return state, outputs

        state, outputs = jax.lax.scan(scanned, state, jnp.arange(num_blocks))
        grads, losses, finite, frozen, spreads = outputs
        grad = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        return (grad, jnp.mean(losses), jnp.all(finite), frozen[-1], jnp.mean(spreads)), state

    def estimate(theta, state, data, key):
        outputs, state = map_tasks(
            lambda state, key: one_task(theta, state, data, key),
            state,
            key,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        return average(theta, *outputs, inner_steps=2 * num_tasks * truncation), state

    return checked_estimator("gpes", init, estimate)
