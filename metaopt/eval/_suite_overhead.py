"""What an optimizer's update costs: its time over that of Adam's on the same parameters.

One program takes many updates, so that neither dispatch nor the clock counts. The loss is half the
squared length of the parameters, whose gradients change with every update: constant ones would let
the compiler move work out of the loop. Both programs are timed in turn, and the shortest time of
each counts: what else the machine does can only add, and on a busy one it adds most of the median.
"""

import time

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt import tree
from metaopt.core import loss_functions

_NUM_UPDATES, _NUM_REPEATS = 20, 25


class UpdateTimer:
    """Times updates of one set of parameters; Adam's program is compiled once."""

    def __init__(self, params: PyTree):
        self._params = params
        self._adam = self._program(optax.adam(1e-3))

    def ratio(self, tx: optax.GradientTransformation) -> dict[str, float]:
        """Seconds of an update by `tx` and by Adam, and their ratio."""
        program = self._program(tx)
        ours, adam = [], []
        for _ in range(_NUM_REPEATS):
            ours.append(_seconds(program))
            adam.append(_seconds(self._adam))
        seconds, reference = min(ours), min(adam)
        return {"seconds": seconds, "adam_seconds": reference, "ratio": seconds / reference}

    def _program(self, tx):
        tx = keep_dtypes(tx)

        def one(carry, _):
            params, state = carry
            extra = loss_functions(_half_square, _half_square(params), params)
            updates, state = tx.update(params, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        @jax.jit
        def run(params):
            return jax.lax.scan(one, (params, tx.init(params)), length=_NUM_UPDATES)[0][0]

        jax.block_until_ready(run(self._params))
        return lambda: jax.block_until_ready(run(self._params))


def keep_dtypes(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, fit for a loop: some rules of optax widen a bfloat16 state."""
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra_args):
        updates, new = tx.update(updates, state, params, **extra_args)
        return updates, tree.cast_like(new, state)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _half_square(params):
    return 0.5 * jnp.asarray(optax.tree.norm(params, squared=True), jnp.float32)


def _seconds(program) -> float:
    start = time.perf_counter()
    program()
    return (time.perf_counter() - start) / _NUM_UPDATES
