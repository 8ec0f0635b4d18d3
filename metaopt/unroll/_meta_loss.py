"""A System and a horizon as a plain function `meta_loss(theta, data, key) -> scalar`.

L(θ) = (1/T) Σₜ ℓₜ(θ)  ("mean"),    ℓ_T(θ)  ("last"),    minₜ ℓₜ(θ)  ("min")
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metaopt.core import MetaLoss, System, checked
from metaopt.unroll._horizon import Horizon, as_horizon, sample_length
from metaopt.unroll._inner_gradient import Gradient
from metaopt.unroll._plan import Loop, Remat
from metaopt.unroll._unroll import freeze_diverged, unroll

Objective = Literal["mean", "last", "min"]


class MetaLossInfo(NamedTuple):
    """What `meta_loss_with_info` reports: whether the trajectory diverged."""

    frozen: Bool[Array, ""]


@checked
def meta_loss(
    system: System,
    *,
    horizon: int | Horizon,
    objective: Objective = "mean",
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
    name: str = "meta_loss",
) -> MetaLoss:
    """The loss of one whole trajectory from a fresh start.

    Args:
        system: what to run; guarded against divergence.
        horizon: inner steps, an int or a `Horizon`. Static.
        objective: mean over the steps, the last one, or the smallest. Static.
        remat: as in `unroll`. Static.
        gradient: as in `unroll`. Static.
        loop: as in `unroll`. Static.
        name: the function on whose behalf errors speak.

    Returns:
        `(theta, data, key, *, num_steps=None) -> scalar`. `num_steps` (traced) fixes the length
        within the horizon; without it the length is drawn from the key.

    Raises:
        ValueError: for an empty horizon or an unknown objective.
    """
    function = meta_loss_with_info(
        system,
        horizon=horizon,
        objective=objective,
        remat=remat,
        gradient=gradient,
        loop=loop,
        name=name,
    )
    return lambda *args, **kwargs: function(*args, **kwargs)[0]


@checked
def meta_loss_with_info(
    system: System,
    *,
    horizon: int | Horizon,
    objective: Objective = "mean",
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
    name: str = "meta_loss",
) -> Callable[..., tuple[Float[Array, ""], MetaLossInfo]]:
    """As `meta_loss`, for a function that returns `(scalar, MetaLossInfo)`."""
    if objective not in get_args(Objective):
        raise ValueError(
            f"{name}: objective={objective!r} is unknown; choose from {get_args(Objective)}."
        )
    lengths = as_horizon(horizon, name=name)
    guarded = freeze_diverged(system)
    bounded = guarded._replace(step=_only_while_active(guarded))
    is_constant = lengths.shortest == lengths.longest
    run = unroll(
        guarded if is_constant else bounded,
        num_steps=lengths.longest,
        remat=remat,
        gradient=gradient,
        loop=loop,
        name=name,
    )

    def function(theta, data, key, *, num_steps=None):
        key_length, key_init, key_run = jax.random.split(key, 3)
        if is_constant:
            length = jnp.array(lengths.longest)
        else:
            length = sample_length(lengths, key_length) if num_steps is None else num_steps
        state = guarded.init(theta, data, key_init, num_steps=length)
        if is_constant:
            state, infos = run(theta, state, data, key_run)
        else:
            start = (state, jnp.zeros_like(length), length)
            (state, _, _), infos = run(theta, start, data, key_run)
        return _reduce(infos.loss, length, objective), MetaLossInfo(state.frozen)

    return function


def _only_while_active(system):
    """Steps while the clock is below the length; a real branch unless the length is batched."""

    @functools.wraps(system.step)  # Takes value_and_grad= if the system does.
    def step(theta, state, data, key, **options):
        inner, clock, length = state
        take_step = functools.partial(system.step, **options)
        shapes = jax.eval_shape(take_step, theta, inner, data, key)[1]
        idle = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        # As raw numbers: a batched branch becomes a selection, which touches the key twice.
        key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)

        def active(state, key_data):
            return take_step(theta, state, data, jax.random.wrap_key_data(key_data, impl=key_impl))

        inner, info = jax.lax.cond(
            clock < length, active, lambda state, _: (state, idle), inner, key_data
        )
        return (inner, clock + 1, length), info

    return step


def _reduce(losses: Float[Array, "T"], length, objective) -> Float[Array, ""]:
    steps = jnp.arange(losses.shape[0])
    if objective == "last":
        return losses[length - 1]
    if objective == "min":
        return jnp.min(jnp.where(steps < length, losses, jnp.inf))
    return jnp.sum(jnp.where(steps < length, losses, 0)) / length
