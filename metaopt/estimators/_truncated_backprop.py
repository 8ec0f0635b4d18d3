"""Truncated backpropagation through time.

    g = 1/N · Σᵢ ∇_θ (1/K) Σ_{k in window} ℓ_k(θ; s_start),    s_start a constant

Cheap in variance and biased towards short horizons: the effect of θ on the state in which the
window starts is not seen. Werbos 1990, doi:10.1109/5.58337; for learned optimizers Andrychowicz et
al. 2016, arXiv:1606.04474, §2.1, except that second derivatives are kept here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt import tree
from metaopt.core import Estimator, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._reach import check_reach
from metaopt.estimators._shared import average, check_tasks, map_tasks
from metaopt.unroll import Episode, Gradient, Horizon, Loop, Remat, episodes


class TruncatedBackpropState(NamedTuple):
    """Where each task stands: an episode with the task axis first."""

    episode: Episode


@checked
def truncated_backprop(
    system: System,
    *,
    truncation: int,
    horizon: int | Horizon | None,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    stagger: bool = True,
    remat: Remat = "step",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> Estimator:
    """Differentiates the loss of one window of inner training. Biased.

    Args:
        system: inner training.
        truncation: K, inner steps per estimate. Static.
        horizon: inner steps until reset: an int or a `Horizon`, in multiples of `truncation`;
            None for a system that ends by itself. Static.
        num_tasks: tasks N that are averaged. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`; fewer
            need less memory, and on CPUs run faster where all do not fit the cache. None: all.
            Static.
        stagger: whether tasks start at different phases of their first trajectory. Static.
        remat: what the backward pass keeps, as in `unroll.unroll`. Static.
        gradient: how the meta-gradient passes through the inner gradient: "reverse", "mixed",
            "first_order" (biased further) or "auto", as in `unroll.unroll`. Static.
        loop: "scan", "unrolled" or "auto", as in `unroll.unroll`. Static.

    Returns:
        An estimator whose state has the task axis first. A task whose gradient is not finite
        contributes zero.

    Raises:
        ValueError: for `num_tasks < 1`, a horizon that is not a multiple of `truncation`, or a
            `gradient` that the system does not offer; from `estimate`, if a first-order gradient
            does not reach a leaf of theta at all.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    name = "truncated_backprop"
    second_order = gradient != "first_order"
    check_tasks(name, num_tasks, tasks_at_once)
    run = episodes(
        system,
        truncation=truncation,
        horizon=horizon,
        stagger=stagger,
        remat=remat,
        gradient=gradient,
        loop=loop,
        name=name,
    )

    def init(theta, data, key):
        keys = jax.random.split(key, num_tasks)
        begin = jax.vmap(run.begin, in_axes=(None, None, 0))
        return TruncatedBackpropState(begin(theta, data, keys))

    def window_loss(theta, state, data, key):
        episode, window = run.window(theta, state.episode, data, key)
        return jnp.mean(window.loss), (episode, window.frozen)

    def one_task(theta, state, data, key):
        (loss, (episode, frozen)), grad = jax.value_and_grad(window_loss, has_aux=True)(
            theta, state, data, key
        )
        finite = tree.all_finite(grad)
        grad = tree.where(finite, grad, jax.tree.map(jnp.zeros_like, grad))
        outputs = (grad, loss, finite, frozen, jnp.zeros(()))
        return outputs, TruncatedBackpropState(episode)

    def estimate(theta, state, data, key):
        if gradient == "first_order":
            loss = lambda *args: window_loss(*args)[0]  # noqa: E731
            one_state = jax.tree.map(lambda x: x[0], state)
            check_reach(name, loss, theta, one_state, data, jax.random.clone(key))
        outputs, state = map_tasks(
            lambda state, key: one_task(theta, state, data, key),
            state,
            key,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        return average(
            theta, *outputs, inner_steps=num_tasks * truncation, second_order=second_order
        ), state

    return checked_estimator("truncated_backprop", init, estimate)
