"""Unrolling: one `scan` over a System, with a choice of what its backward pass keeps.

Reverse-mode differentiation of T steps keeps T states and T steps' intermediate values. `remat`
trades memory for a second forward pass (Chen et al. 2016, arXiv:1604.06174, §4.1):

    "none"       everything is kept;
    "step"       states are kept, what happens inside a step is computed again;
    "gradients"  states and inner gradients are kept, so that the second pass starts after the
                 inner gradient (Kemaev et al. 2025, arXiv:2505.00793, §4): best with "mixed";
    "nested"     √T states are kept, and within one of the √T segments as "step" does;
    "auto"       "none", or "step" or "nested" where that saves memory without costing time.

`gradient` chooses how the derivative passes through the inner gradient, and matters as much. XLA on
CPU runs convolutions in a loop three times slower than outside: a short loop around them is
`loop="unrolled"`, which compiles in time proportional to T. `_plan` says what "auto" decides.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metaopt import tree
from metaopt.core import StepInfo, System, checked
from metaopt.unroll._inner_gradient import (
    INNER_GRADIENT,
    Gradient,
    takes_value_and_grad,
    with_gradient,
)
from metaopt.unroll._plan import Loop, Remat, make_plan


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


@checked
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

    @functools.wraps(system.step)  # Takes value_and_grad= if the system does.
    def step(theta, state, data, key, **options):
        inner, info = system.step(theta, state.inner, data, key, **options)
        _check_step(state.inner, inner, info)
        loss = info.loss.astype(state.worst.dtype)
        has_loss = jnp.isfinite(loss) & ~state.frozen
        worst = jnp.where(has_loss, jnp.maximum(loss, state.worst), state.worst)
        frozen = state.frozen | ~has_loss | ~_stays_finite(state.inner, inner)
        inner = tree.where(frozen, state.inner, inner)
        limits = jnp.finfo(worst.dtype)
        reported = jnp.where(has_loss, loss, jnp.where(worst == limits.min, limits.max, worst))
        return FrozenState(inner, frozen, worst), StepInfo(reported, info.done & ~frozen)

    return System(init, step)


def _check_step(before, after, info) -> None:
    """Raises ValueError, when traced, for a step that does not do as `System` says."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            "System.step changes the structure of its state, from "
            f"{jax.tree.structure(before)} to {jax.tree.structure(after)}; return what init does."
        )
    if jnp.shape(info.loss):
        raise ValueError(
            f"System.step reports a loss of shape {jnp.shape(info.loss)}; it must be a scalar: "
            "take a mean or a sum."
        )


def _stays_finite(old, new) -> Bool[Array, ""]:
    """Whether nothing that was finite is not any more: some optimizers start from an infinity."""

    def suspect(x, y):
        is_float = jnp.issubdtype(jnp.result_type(y), jnp.inexact)
        return jnp.where(jnp.isfinite(x), y, 0) if is_float else y

    return tree.all_finite(jax.tree.map(suspect, old, new))


@checked
def unroll(
    system: System,
    *,
    num_steps: int,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
    name: str = "unroll",
) -> Callable[[Any, Any, Any, PRNGKeyArray], tuple[Any, StepInfo]]:
    """Makes a function that runs a system for `num_steps` steps in one scan.

    Args:
        system: the system.
        num_steps: inner steps. Static.
        remat: what reverse-mode differentiation keeps, see the module. Static.
        gradient: how a meta-gradient passes through the inner gradient: "reverse", "mixed",
            "first_order", or "auto", which is "mixed" where the system leaves it a choice. Static.
        loop: "scan", one step's code in a loop; "unrolled", every step's code; or "auto". Static.
        name: the function on whose behalf errors speak.

    Returns:
        `(theta, state, data, key) -> (state, StepInfo)` whose infos have the step axis first.

    Raises:
        ValueError: if `num_steps < 1`, a choice is unknown, or `gradient` or `remat` needs a system
            whose step takes `value_and_grad=`.
    """
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps must be at least 1, got {num_steps}.")
    for setting, value, known in (("remat", remat, Remat), ("loop", loop, Loop)):
        if value not in get_args(known):
            raise ValueError(
                f"{name}: {setting}={value!r} is unknown; choose from {get_args(known)}."
            )
    with_gradient(system, gradient, named=remat == "gradients", name=name)  # Raises at once.
    choices = {
        "num_steps": num_steps,
        "remat": remat,
        "gradient": gradient,
        "loop": loop,
        "has_choice": takes_value_and_grad(system),
    }

    def run(theta, state, data, key):
        # Rematerialisation takes a step twice with one key, on purpose; wrapping the key anew
        # inside the step tells the key-reuse checker so.
        key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)

        def step_of(system):
            def one(theta, state, data, key_data, index):
                key = jax.random.wrap_key_data(key_data, impl=key_impl)
                return system.step(theta, state, data, jax.random.fold_in(key, index))

            return one

        fed = (data, key_data, jnp.zeros((), int))
        plan = make_plan(step_of(system), theta, state, *fed, **choices)
        chosen = with_gradient(system, plan.gradient, named=plan.remat == "gradients", name=name)
        one = step_of(chosen)
        return _loop(lambda s, i: one(theta, s, data, key_data, i), state, num_steps, plan)

    return run


def _loop(one, state, num_steps, plan):
    """Scans `one` over step indices."""
    unrolled = plan.loop == "unrolled"
    scan = functools.partial(jax.lax.scan, unroll=unrolled)
    # A loop keeps XLA from merging the two forward passes; without one a barrier has to.
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=unrolled)
    steps = jnp.arange(num_steps)
    if plan.remat == "none":
        return scan(one, state, steps)
    if plan.remat == "gradients":
        policy = jax.checkpoint_policies.save_only_these_names(INNER_GRADIENT)
        return scan(checkpoint(one, policy=policy), state, steps)
    step = checkpoint(one)
    if plan.remat == "step":
        return scan(step, state, steps)

    def run_segment(state, steps):
        return scan(step, state, steps)

    root = math.isqrt(num_steps)
    segment = max(d for d in range(1, root + 1) if num_steps % d == 0)
    if 2 * segment < root:  # No divisor near the root: what is left over follows by itself.
        segment = root
    whole = num_steps - num_steps % segment
    state, infos = scan(checkpoint(run_segment), state, steps[:whole].reshape(-1, segment))
    infos = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), infos)
    if whole < num_steps:
        state, rest = jax.checkpoint(run_segment)(state, steps[whole:])
        infos = jax.tree.map(lambda *x: jnp.concatenate(x), infos, rest)
    return state, infos
