"""Persistent evolution strategies (PES).

Every task has two arms that keep their own inner states from window to window, and the noise ξ
summed over the windows of the current trajectory. In a window, with fresh e ~ N(0, σ² I), loss
differences d_k = ℓ_k(θ + e) − ℓ_k(θ − e), and F_k = 1 if a trajectory ended before step k:

    ξ ← ξ + e
    g = 1/(2σ²K) · [ ξ · Σ_k d_k (1 − F_k) + e · Σ_k d_k F_k ],      averaged over tasks
    ξ ← 0 if a trajectory ended with the window's last step, else e if one ended inside, else ξ

Unbiased for the smoothed loss of whole trajectories. Vicol, Metz and Sohl-Dickstein 2021,
arXiv:2112.13835, algorithm 2. The losses of the step that ends a trajectory belong to it, so they
multiply ξ (`boundary="exclusive"`). The public reference implementation counts that step as
already after the end and does not clear ξ, which biases the estimate; `boundary="inclusive"`
repeats its arithmetic, to rounding.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

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

Boundary = Literal["exclusive", "inclusive"]


class PESState(NamedTuple):
    """What is carried between windows.

    Attributes:
        arms: the two arms of each task, leaves `[num_tasks, 2, ...]`.
        noise: ξ, leaves `[num_tasks, ...]` like `theta`.
    """

    arms: Episode
    noise: PyTree


@checked
def pes(
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
    boundary: Boundary = "exclusive",
) -> Estimator:
    """Estimates the gradient of the σ-smoothed loss of whole trajectories from windows.

    Args:
        system: inner training.
        sigma: perturbation scale σ, in units of `theta`. Traced.
        truncation: K, inner steps per estimate. Static.
        horizon: inner steps until reset: an int or a `Horizon`, in multiples of `truncation`;
            None for a system that ends by itself. Static.
        num_tasks: tasks, one antithetic pair each. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`; fewer
            need less memory, and on CPUs run faster where all do not fit the cache. None: all.
            Static.
        sign: the constant c that replaces every d_k of a window by `sign(mean d) · c`. Traced;
            None: the differences themselves.
        ranks: the constant c that multiplies differences of centred ranks, which replace every
            d_k of a window. Traced; None: not ranked. Excludes `sign`.
        stagger: whether tasks start at different phases of their first trajectory. Static.
        boundary: see the module. Static.

    Returns:
        An estimator whose state has the task axis first.

    Raises:
        ValueError: for a non-positive `sigma`, `sign` or `ranks`, the last two together,
            `num_tasks < 1`, an unknown `boundary`, or a horizon that is not a multiple of
            `truncation`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_positive("pes", sigma=sigma)
    check_transforms("pes", sign, ranks)
    check_tasks("pes", num_tasks, tasks_at_once)
    if boundary not in get_args(Boundary):
        raise ValueError(
            f"pes: boundary={boundary!r} is unknown; choose from {get_args(Boundary)}."
        )
    run = episodes(system, truncation=truncation, horizon=horizon, stagger=stagger, name="pes")

    def init(theta, data, key):
        keys = jax.random.split(key, num_tasks)
        start = jax.vmap(run.begin, in_axes=(None, None, 0))(theta, data, keys)
        arms = jax.tree.map(lambda x: jnp.stack([x, x], axis=1), start)
        noise = jax.tree.map(lambda x: jnp.zeros((num_tasks, *jnp.shape(x)), x.dtype), theta)
        return PESState(arms, noise)

    def one_task(theta, state, data, key):
        key_eps, key_window = jax.random.split(key)
        eps = perturbation(theta, sigma, key_eps)
        # Both arms see the same task, batches and resets.
        arms, window = jax.vmap(run.window, in_axes=(0, 0, None, None))(
            antithetic(theta, eps), state.arms, data, key_window
        )
        difference = window.loss[0] - window.loss[1]
        mask = jnp.ones_like(difference)
        old, new, finite = window_weights(
            transform_pair(difference, None, ranks), window.done[0], mask, boundary, sign
        )
        noise = optax.tree.add(state.noise, eps)
        grad = jax.tree.map(lambda x, e: (old * x + new * e) / (2 * sigma**2), noise, eps)
        noise = carried_noise(noise, eps, window.done[0], boundary)
        spread = jnp.abs(jnp.mean(difference))
        losses = jnp.mean(window.loss, axis=1)
        return (grad, losses, finite, window.frozen, spread), PESState(arms, noise)

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

    return checked_estimator("pes", init, estimate)


def window_weights(
    difference: Float[Array, "K"],
    done: Bool[Array, "K"],
    mask: Float[Array, "K"],
    boundary: Boundary,
    sign: Scalar | None,
) -> tuple[Float[Array, ""], Float[Array, ""], Bool[Array, ""]]:
    """The factors of ξ and of e, and whether the differences were finite (else both are 0)."""
    difference, finite = finite_or_zero(difference)
    if sign is not None:
        difference = sign * jnp.sign(jnp.mean(difference * mask)) * jnp.ones_like(difference)
    ended = jnp.cumsum(done) - (0 if boundary == "inclusive" else done)
    weighted = difference * mask / jnp.maximum(jnp.sum(mask), 1)
    after = jnp.sum(jnp.where(ended > 0, weighted, 0))
    return jnp.sum(weighted) - after, after, finite


def carried_noise(noise: PyTree, eps: PyTree, done: Bool[Array, "K"], boundary: Boundary) -> PyTree:
    """ξ for the next window."""
    carried = tree.where(jnp.any(done), eps, noise)
    if boundary == "inclusive":
        return carried
    return tree.where(done[-1], optax.tree.zeros_like(noise), carried)
