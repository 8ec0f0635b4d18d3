"""Meta-losses that count the more the later they come.

    ℓ_t <- (p + 1) ((t + 1)/T)^p · ℓ_t,    t = 0 ... T - 1

Their mean over a trajectory is a weighted mean of the losses, up to O(1/T): p = 0 rewards speed
from the first step on, a large p little but the end. An optimizer that anneals is judged too early
by p = 0.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int

from metaopt.core import Scalar, System, checked


class LateLossesState(NamedTuple):
    """The system's state, the steps it has taken and those it was planned for."""

    inner: Any
    count: Int[Array, ""]
    num_steps: Int[Array, ""]


@checked
def late_losses(system: System, *, power: Scalar = 1.0) -> System:
    """Weighs a system's losses by its progress.

    Args:
        system: what to weigh; its trajectories must have a planned number of steps.
        power: p, not negative. Traced.

    Returns:
        A system with the same trajectories.

    Raises:
        ValueError: if `power` is negative; in `init`, without `num_steps`.
    """
    if not isinstance(power, Tracer) and power < 0:
        raise ValueError(f"late_losses: power={power} is negative; use 0 or more.")

    def init(theta, data, key, *, num_steps=None):
        if num_steps is None:
            raise ValueError(
                "late_losses: num_steps=None, but weights depend on how much of the training is "
                "left; use an estimator with a horizon."
            )
        inner = system.init(theta, data, key, num_steps=num_steps)
        return LateLossesState(inner, jnp.zeros((), jnp.int32), jnp.asarray(num_steps))

    def step(theta, state, data, key, **keywords):
        inner, info = system.step(theta, state.inner, data, key, **keywords)
        progress = (state.count + 1).astype(info.loss.dtype) / state.num_steps
        weight = (power + 1) * progress**power
        state = LateLossesState(inner, state.count + 1, state.num_steps)
        return state, info._replace(loss=weight * info.loss)

    return System(init, step)
