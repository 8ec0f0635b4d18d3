"""Unrolling: one `scan` over a System, with a choice of what its backward pass keeps.

Reverse-mode differentiation of T steps keeps T states and T steps' intermediate values. `remat`
trades memory for a second forward pass (Chen et al. 2016, arXiv:1604.06174, §4.1):

    "none"    everything is kept;
    "step"    states are kept, what happens inside a step is computed again;
    "nested"  √T states are kept, and within one of the √T segments as "step" does.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metaopt import tree
from metaopt.core import StepInfo, System

Remat = Literal["none", "step", "nested"]


class FrozenState(NamedTuple):
    """A system's state with a guard against divergence.

    Attributes:
        inner: the guarded system's last state in which everything was finite.
        frozen: whether the next state was not finite; the trajectory then stands still.
        worst: the largest finite loss reported so far, repeated once frozen.
    """

    inner: Any
    frozen: Bool[Array, ""]
    worst: Float[Array, ""]


def freeze_diverged(system: System) -> System:
    """Guards a system: a trajectory whose loss or state turns non-finite is frozen.

    From then on the state stays as it was and every step reports the worst finite loss of the
    trajectory, so that the meta-loss says "this was bad" without arithmetic on NaN. A family's
    normaliser maps a non-finite loss to its upper end, which then is that worst loss. Where no
    finite loss came before, the largest finite number is reported.

    Args:
        system: any system.

    Returns:
        A system whose state is a `FrozenState`; losses have the default float dtype.
    """

    def init(theta, data, key, *, num_steps=None):
        inner = system.init(theta, data, key, num_steps=num_steps)
        lowest = jnp.finfo(jnp.result_type(float)).min
        return FrozenState(inner, jnp.array(False), jnp.array(lowest))

    def step(theta, state, data, key):
        inner, info = system.step(theta, state.inner, data, key)
        loss = info.loss.astype(state.worst.dtype)
        has_loss = jnp.isfinite(loss) & ~state.frozen
        worst = jnp.where(has_loss, jnp.maximum(loss, state.worst), state.worst)
        frozen = state.frozen | ~has_loss | ~_stays_finite(state.inner, inner)
        inner = tree.where(frozen, state.inner, inner)
        limits = jnp.finfo(worst.dtype)
        reported = jnp.where(has_loss, loss, jnp.where(worst == limits.min, limits.max, worst))
        return FrozenState(inner, frozen, worst), StepInfo(reported, info.done & ~frozen)

    return System(init, step)


def _stays_finite(old, new) -> Bool[Array, ""]:
    """Whether nothing that was finite is not any more: some optimizers start from an infinity."""

    def suspect(x, y):
        is_float = jnp.issubdtype(jnp.result_type(y), jnp.inexact)
        return jnp.where(jnp.isfinite(x), y, 0) if is_float else y

    return tree.all_finite(jax.tree.map(suspect, old, new))


def unroll(
    system: System, *, num_steps: int, remat: Remat = "none"
) -> Callable[[Any, Any, Any, PRNGKeyArray], tuple[Any, StepInfo]]:
    """Makes a function that runs a system for `num_steps` steps in one scan.

    Args:
        system: the system.
        num_steps: inner steps. Static.
        remat: what reverse-mode differentiation keeps, see the module. Static.

    Returns:
        `(theta, state, data, key) -> (state, StepInfo)` whose infos have the step axis first.

    Raises:
        ValueError: if `num_steps < 1` or `remat` is unknown.
    """
    if num_steps < 1:
        raise ValueError(f"unroll: num_steps must be at least 1, got {num_steps}.")
    if remat not in get_args(Remat):
        raise ValueError(f"unroll: remat={remat!r} is unknown; choose from {get_args(Remat)}.")

    def run(theta, state, data, key):
        # Rematerialisation takes a step twice with one key, on purpose; wrapping the key anew
        # inside the step tells the key-reuse checker so.
        key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)

        def one(state, index):
            key_step = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=key_impl), index)
            return system.step(theta, state, data, key_step)

        # The loop itself keeps XLA from merging the two forward passes, so no barrier is needed.
        step = one if remat == "none" else jax.checkpoint(one, prevent_cse=False)
        steps = jnp.arange(num_steps)
        if remat != "nested":
            return jax.lax.scan(step, state, steps)

        segment = max(d for d in range(1, math.isqrt(num_steps) + 1) if num_steps % d == 0)
        run_segment = jax.checkpoint(lambda s, t: jax.lax.scan(step, s, t), prevent_cse=False)
        state, infos = jax.lax.scan(run_segment, state, steps.reshape(-1, segment))
        return state, jax.tree.map(lambda x: x.reshape(num_steps, *x.shape[2:]), infos)

    return run
