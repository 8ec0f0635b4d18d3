"""Bootstrapped meta-gradients: inner training is matched to its own future.

From a carried state x, K steps under θ give x_K(θ); L more steps from there, of which the last may
be another rule (a plain gradient step on the true objective), give a target that is held fixed:

    t = [L steps from x_K(θ)], stopped        g = ∇_θ μ(x_K(θ), t),      averaged over tasks

The target looks K + L steps ahead while the backward pass covers K. With L = 1, a gradient step of
size α as that step, and μ half the squared distance, g = α ∇ℓ(x_K) · dx_K/dθ: α times the
meta-gradient of the loss after K steps. Flennerhag et al. 2021, arXiv:2109.04504, §3. Training goes
on from x_K.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt import tree
from metaopt.core import Estimator, StepInfo, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import average, check_count, check_tasks, map_tasks
from metaopt.unroll import Episode, Horizon, Remat, episodes, freeze_diverged, unroll


class BootstrappedState(NamedTuple):
    """Where each task stands: an episode with the task axis first."""

    episode: Episode


class BootstrappedInfo(NamedTuple):
    """What only this estimator reports.

    Attributes:
        matching: the matching function's value, averaged over tasks.
    """

    matching: Float[Array, ""]


def squared_distance(state: Any, target_state: Any) -> Float[Array, ""]:
    """Half the squared Euclidean distance between the `params` of two states."""
    if not hasattr(state, "params"):
        raise TypeError(
            f"squared_distance: a {type(state).__name__} has no `params`; pass your own "
            "matching=(state, target_state) -> scalar."
        )
    difference = optax.tree.sub(state.params, target_state.params)
    return 0.5 * optax.tree.norm(difference, squared=True)


@checked
def bootstrapped(
    system: System,
    *,
    truncation: int,
    bootstrap: int,
    horizon: int | Horizon | None,
    last_step: Callable[..., tuple[Any, StepInfo]] | None = None,
    matching: Callable[[Any, Any], Float[Array, ""]] = squared_distance,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    stagger: bool = True,
    remat: Remat = "step",
) -> Estimator:
    """Differentiates the distance of inner training to a target that it bootstraps.

    Args:
        system: inner training.
        truncation: K, inner steps that are differentiated, per estimate. Static.
        bootstrap: L, inner steps from there to the target. Static.
        horizon: inner steps until reset: an int or a `Horizon`, in multiples of `truncation`;
            None for a system that ends by itself. Static.
        last_step: the last of the L steps, `(theta, state, data, key) -> (state, StepInfo)` as in
            a System of the same states; None: the system's own. Static.
        matching: `(state, target_state) -> scalar` over the system's states, differentiated in its
            first argument; the default takes their `.params`. Static.
        num_tasks: tasks N that are averaged. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`. None:
            all. Static.
        stagger: whether tasks start at different phases of their first trajectory. Static.
        remat: what the backward pass keeps: "none", "step" or "nested". Static.

    Returns:
        An estimator whose state has the task axis first. Its loss is the mean loss of the K steps;
        `info.aux` is a `BootstrappedInfo`. A task whose gradient is not finite contributes zero.

    Raises:
        ValueError: for `bootstrap < 1`, `num_tasks < 1` or a horizon that is not a multiple of
            `truncation`.
        TypeError: if `theta` has leaves that are not floating-point, or, with the default
            `matching`, states have no `params`.
    """
    name = "bootstrapped"
    check_tasks(name, num_tasks, tasks_at_once)
    check_count(name, bootstrap=bootstrap)
    settings: dict[str, Any] = {"horizon": horizon, "stagger": stagger, "remat": remat}
    run = episodes(system, truncation=truncation, name=name, **settings)
    target_of = _target(system, bootstrap, last_step)

    def init(theta, data, key):
        begin = jax.vmap(run.begin, in_axes=(None, None, 0))
        return BootstrappedState(begin(theta, data, jax.random.split(key, num_tasks)))

    def one_task(theta, state, data, key):
        key_window, key_target = jax.random.split(key)

        def distance(theta):
            episode, window = run.window(theta, state.episode, data, key_window)
            fixed = jax.lax.stop_gradient((theta, episode.state))
            target = jax.lax.stop_gradient(target_of(*fixed, data, key_target))
            value = matching(episode.state.inner, target.inner)
            return value, (episode, window)

        (value, (episode, window)), grad = jax.value_and_grad(distance, has_aux=True)(theta)
        finite = tree.all_finite(grad)
        grad = tree.where(finite, grad, jax.tree.map(jnp.zeros_like, grad))
        outputs = (grad, jnp.mean(window.loss), finite, window.frozen, jnp.zeros(()))
        return (outputs, value), BootstrappedState(episode)

    def estimate(theta, state, data, key):
        (outputs, values), state = map_tasks(
            lambda state, key: one_task(theta, state, data, key),
            state,
            key,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        aux = BootstrappedInfo(jnp.mean(values).astype(float))
        result = average(
            theta, *outputs, inner_steps=num_tasks * truncation, second_order=True, aux=aux
        )
        return _count_target(result, num_tasks * bootstrap), state

    return checked_estimator("bootstrapped", init, estimate)


def _target(system, bootstrap, last_step):
    """`(theta, state, data, key) -> state` after the L steps; states are guarded."""
    guarded = freeze_diverged(system)
    last = guarded if last_step is None else freeze_diverged(system._replace(step=last_step))
    run_last = unroll(last, num_steps=1)
    if bootstrap == 1:
        return lambda *args: run_last(*args)[0]
    run_first = unroll(guarded, num_steps=bootstrap - 1)

    def target(theta, state, data, key):
        key_first, key_last = jax.random.split(key)
        state, _ = run_first(theta, state, data, key_first)
        return run_last(theta, state, data, key_last)[0]

    return target


def _count_target(estimate, steps):
    """Adds the steps to the target, which no backward pass covers."""
    info = estimate.info
    oracles = info.oracles._replace(inner_gradients=info.oracles.inner_gradients + steps)
    return estimate._replace(
        info=info._replace(inner_steps=info.inner_steps + steps, oracles=oracles)
    )
