"""Trajectories in windows: what truncated estimators carry from one estimate to the next.

A task is trained for a horizon of T steps, K (the truncation) at a time. Where a trajectory has
reached its length, the next window begins with a new task. Resets between windows only: the same
statistics as resets inside them, without a second initialisation inside the scan. Systems that
end by themselves (`StepInfo.done`) may do so at any step; `auto_reset` makes one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metaopt import tree
from metaopt.core import StepInfo, System, checked
from metaopt.unroll._horizon import Horizon, as_horizon, sample_length
from metaopt.unroll._inner_gradient import Gradient
from metaopt.unroll._plan import Loop, Remat
from metaopt.unroll._unroll import FrozenState, freeze_diverged, unroll

_ENDLESS = jnp.iinfo(jnp.int32).max


class Episode(NamedTuple):
    """One task on its way.

    Attributes:
        state: the system's state, guarded against divergence.
        clock: inner steps since the start, or since a staggered start.
        length: inner steps at which the trajectory ends.
    """

    state: FrozenState
    clock: Int[Array, ""]
    length: Int[Array, ""]


class Window(NamedTuple):
    """What a window of K steps reports.

    Attributes:
        loss: meta-loss of each step, always finite for a normalised family.
        done: whether a trajectory ended with the step.
        frozen: whether the task has diverged and stands still.
    """

    loss: Float[Array, "K"]
    done: Bool[Array, "K"]
    frozen: Bool[Array, ""]


class Episodes(NamedTuple):
    """Functions of `episodes`.

    Attributes:
        begin: `(theta, data, key) -> Episode`.
        window: `(theta, episode, data, key) -> (Episode, Window)`.
    """

    begin: Callable[..., Episode]
    window: Callable[..., tuple[Episode, Window]]


class AutoResetState(NamedTuple):
    """State of `auto_reset`: the system's, and when it ends."""

    state: FrozenState
    clock: Int[Array, ""]
    length: Int[Array, ""]


@checked
def episodes(
    system: System,
    *,
    truncation: int,
    horizon: int | Horizon | None,
    stagger: bool = True,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
    name: str = "episodes",
) -> Episodes:
    """Runs a system window by window, starting anew where a trajectory has reached its length.

    Args:
        system: what to run.
        truncation: K, inner steps per window. Static.
        horizon: T, inner steps until reset: an int or a `Horizon`, in multiples of K. None: the
            system ends by itself or never. Static.
        stagger: whether the first clock is drawn uniformly from the multiples of K below the
            length, so that tasks do not all reset together. Static.
        remat: as in `unroll`. Static.
        gradient: as in `unroll`. Static.
        loop: as in `unroll`. Static.
        name: the function on whose behalf errors speak.

    Returns:
        The functions `begin` and `window`. Neither depends on `theta` in when episodes end, so
        that antithetic arms with equal keys stay in step.

    Raises:
        ValueError: if the horizon is not a multiple of the truncation; or as in `unroll`.
    """
    if truncation < 1:
        raise ValueError(f"{name}: truncation must be at least 1, got {truncation}.")
    lengths = None if horizon is None else as_horizon(horizon, name=name, multiple_of=truncation)
    guarded = freeze_diverged(system)
    run = unroll(
        guarded, num_steps=truncation, remat=remat, gradient=gradient, loop=loop, name=name
    )

    def start(theta, data, key):
        key_length, key_init = jax.random.split(key)
        if lengths is None:
            length = jnp.array(_ENDLESS)
            state = guarded.init(theta, data, key_init)
        else:
            length = sample_length(lengths, key_length, multiple_of=truncation)
            state = guarded.init(theta, data, key_init, num_steps=length)
        return Episode(state, jnp.zeros_like(length), length)

    def begin(theta, data, key):
        key_start, key_stagger = jax.random.split(key)
        episode = start(theta, data, key_start)
        if stagger and lengths is not None:
            windows = jax.random.randint(key_stagger, (), 0, episode.length // truncation)
            episode = episode._replace(clock=truncation * windows)
        return episode

    def window(theta, episode, data, key):
        key_start, key_run = jax.random.split(key)
        if lengths is not None:
            fresh = start(theta, data, key_start)
            episode = tree.where(episode.clock >= episode.length, fresh, episode)
        state, infos = run(theta, episode.state, data, key_run)
        clock = episode.clock + truncation if lengths is not None else episode.clock
        done = infos.done.at[-1].set(infos.done[-1] | (clock >= episode.length))
        return Episode(state, clock, episode.length), Window(infos.loss, done, state.frozen)

    return Episodes(begin, window)


@checked
def auto_reset(system: System, *, horizon: int | Horizon) -> System:
    """A system that ends by itself: after its length it starts anew within the same scan.

    For horizons that are no multiple of the truncation. Costs an initialisation per step.

    Args:
        system: what to run.
        horizon: inner steps until reset, an int or a `Horizon`. Static.

    Returns:
        A system whose `StepInfo.done` is True at the last step of each trajectory.

    Raises:
        ValueError: if the horizon is below one step.
    """
    lengths = as_horizon(horizon, name="auto_reset")
    guarded = freeze_diverged(system)

    def init(theta, data, key, *, num_steps=None):
        del num_steps
        key_length, key_init = jax.random.split(key)
        length = sample_length(lengths, key_length)
        state = guarded.init(theta, data, key_init, num_steps=length)
        return AutoResetState(state, jnp.zeros_like(length), length)

    @functools.wraps(system.step)  # Takes value_and_grad= if the system does.
    def step(theta, state, data, key, **options) -> tuple[Any, StepInfo]:
        key_init, key_step = jax.random.split(key)
        fresh = init(theta, data, key_init)
        state = tree.where(state.clock >= state.length, fresh, state)
        inner, info = guarded.step(theta, state.state, data, key_step, **options)
        clock = state.clock + 1
        return AutoResetState(inner, clock, state.length), StepInfo(
            info.loss, info.done | (clock >= state.length)
        )

    return System(init, step)
