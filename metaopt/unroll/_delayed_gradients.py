"""Stale gradients: each update follows the gradient where the parameters were k steps before.

    p_{t+1} = p_t + update(∇L_t(p_{t-k})),    p_{t-k} = p_0 for t < k

The step reports the loss L_t(p_{t-k}) that it differentiates. As asynchronous training has it; one
of the augmentations in the meta-training of VeLO (Metz et al. 2022, arXiv:2211.09760, and its
public code). The history of the parameters is state, so this wraps a system and not a family.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from metaopt.core import System, checked
from metaopt.unroll._inner_gradient import takes_value_and_grad


class DelayedState(NamedTuple):
    """State of `delayed_gradients`.

    Attributes:
        state: the system's state.
        past: parameters of the last k steps, on a new leading axis; step t reads and then writes
            the place t mod k.
        clock: steps taken.
    """

    state: Any
    past: PyTree
    clock: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The parameters, which are not delayed."""
        return self.state.params


@checked
def delayed_gradients(system: System, *, delay: int) -> System:
    """Inner training by gradients that are `delay` steps old.

    Args:
        system: its state has `params`, and its step takes the keyword `value_and_grad=`, as those
            of `metaopt.core.{training, adaptation, bilevel_training}` have and do.
        delay: k, steps; VeLO's are log-uniform from 1 to 8. Static.

    Returns:
        A system that keeps k copies of the parameters; its step takes `value_and_grad=` too.

    Raises:
        ValueError: if `delay < 1`, or the step does not take `value_and_grad=`; when traced, if the
            state has no `params`.
    """
    if delay < 1:
        raise ValueError(f"delayed_gradients: delay={delay} is below 1; use the system as it is.")
    if not takes_value_and_grad(system):
        raise ValueError(
            "delayed_gradients: the system's step does not take the keyword value_and_grad=, the "
            "transformation it differentiates its inner loss with; add it "
            "(value_and_grad=jax.value_and_grad)."
        )

    def init(theta, data, key, *, num_steps=None):
        state = system.init(theta, data, key, num_steps=num_steps)
        if not hasattr(state, "params"):
            raise ValueError(
                f"delayed_gradients: the system's state is a {type(state).__name__} without "
                "params; name what the inner loss is differentiated by `params`."
            )
        past = jax.tree.map(lambda x: jnp.stack([x] * delay), state.params)
        return DelayedState(state, past, jnp.zeros((), jnp.int32))

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        place = state.clock % delay
        stale = jax.tree.map(lambda x: x[place], state.past)

        def at_stale(function, **options):
            differentiated = value_and_grad(function, **options)
            return lambda params, *args: differentiated(stale, *args)

        inner, info = system.step(theta, state.state, data, key, value_and_grad=at_stale)
        past = jax.tree.map(lambda x, p: x.at[place].set(p), state.past, state.params)
        return DelayedState(inner, past, state.clock + 1), info

    return System(init, step)
