"""Backpropagation through the whole inner training.

    g = 1/N · Σᵢ ∇_θ L(θ; task i),    L the loss of a trajectory of T steps

Exact for the sampled tasks, second derivatives included; memory grows with T (see `remat`) and
its variance may grow exponentially with T where inner training is chaotic (Metz et al. 2021,
arXiv:2111.05803). Maclaurin et al. 2015, arXiv:1502.03492.
"""

import jax
import jax.numpy as jnp

from metaopt import tree
from metaopt.core import Estimator, MetaLoss, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._reach import check_reach
from metaopt.estimators._shared import (
    as_episode_loss,
    average,
    check_tasks,
    map_tasks,
)
from metaopt.unroll import Gradient, Horizon, Loop, Objective, Remat, as_horizon, sample_length


@checked
def backprop(
    problem: System | MetaLoss,
    *,
    horizon: int | Horizon | None = None,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    objective: Objective = "mean",
    remat: Remat = "nested",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> Estimator:
    """Differentiates the loss of whole trajectories in reverse mode.

    Args:
        problem: a System, or a differentiable `meta_loss(theta, data, key) -> scalar`.
        horizon: inner steps of a trajectory, for a System: an int or a `Horizon`, of which one
            length is drawn for all tasks. Static.
        num_tasks: tasks N that are averaged. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`; fewer
            need less memory, and on CPUs run faster where all do not fit the cache. None: all.
            Static.
        objective: of a System's trajectory: "mean", "last" or "min". Static.
        remat: what the backward pass keeps, as in `unroll.unroll`; "nested" needs O(√T) memory.
            Static; for a System.
        gradient: how the meta-gradient passes through the inner gradient: "reverse", "mixed",
            "first_order" (biased) or "auto", as in `unroll.unroll`. Static; for a System.
        loop: "scan", "unrolled" or "auto", as in `unroll.unroll`. Static; for a System.

    Returns:
        An estimator without state. A task whose gradient is not finite contributes zero.

    Raises:
        ValueError: for `num_tasks < 1`, a System without a horizon, a function with one, or a
            `gradient` that the System does not offer; from `estimate`, if a first-order gradient
            does not reach a leaf of theta at all.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_tasks("backprop", num_tasks, tasks_at_once)
    episode_loss = as_episode_loss(
        "backprop",
        problem,
        horizon=horizon,
        objective=objective,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )
    second_order = gradient != "first_order"
    lengths = None if horizon is None else as_horizon(horizon, name="backprop")

    def init(theta, data, key):
        del data, key
        return ()

    def one_task(theta, data, key, length):
        (loss, info), grad = jax.value_and_grad(episode_loss, has_aux=True)(
            theta, data, key, length
        )
        finite = tree.all_finite(grad)
        grad = tree.where(finite, grad, jax.tree.map(jnp.zeros_like, grad))
        return grad, loss, finite, info.frozen, jnp.zeros(())

    def estimate(theta, state, data, key):
        key_length, key_tasks = jax.random.split(key)
        length = None if lengths is None else sample_length(lengths, key_length)
        if gradient == "first_order":
            loss = lambda *args: episode_loss(*args)[0]  # noqa: E731
            check_reach("backprop", loss, theta, data, jax.random.clone(key), length)
        outputs = map_tasks(
            lambda _, key: one_task(theta, data, key, length),
            (),
            key_tasks,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        steps = 0 if length is None else num_tasks * length
        return average(theta, *outputs, inner_steps=steps, second_order=second_order), state

    return checked_estimator("backprop", init, estimate)
