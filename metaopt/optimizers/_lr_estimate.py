"""Super-convergence: the momentum of a one-cycle policy, and an estimate of the learning rate.

    momentum:  0.95 → 0.85 while the learning rate rises, then back to 0.95
    estimate:  ε d₀/(d₀ − d₁)  per entry,    ε Σ|d₀| / Σ|d₀ − d₁|  as one number

with d₀ and d₁ two consecutive updates of plain gradient descent at the rate ε: the secant estimate
of 1/h, exact where the Hessian is diagonal with entries h. Smith and Topin 2017, arXiv:1708.07120,
§3 and §4.1. Learning rates come from `optax.cosine_onecycle_schedule` and
`optax.linear_onecycle_schedule`. Differs from the paper: exponential averages of both sums rather
than of their quotient.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known, moderate, quotient, refuse_decays, widen


class LREstimateState(NamedTuple):
    """A running estimate of the best learning rate.

    Attributes:
        count: updates seen.
        previous: the last one.
        size: moving average of Σ|d₀|.
        change: moving average of Σ|d₀ − d₁|.
        estimate: the learning rate; 0 before the second update and where no curvature was seen.
    """

    count: Int[Array, ""]
    previous: PyTree
    size: Float[Array, ""]
    change: Float[Array, ""]
    estimate: Float[Array, ""]


@checked
def lr_estimate(
    learning_rate: Scalar, *, decay: Scalar = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Watches updates and estimates the learning rate that a quadratic would ask for.

    Last in a chain, after plain gradient descent (no momentum) at a constant rate; updates pass
    unchanged. `optax.tree.get(state, "estimate")` reads the number.

    Args:
        learning_rate: ε, the rate behind the updates. Traced.
        decay: of the moving averages, in [0, 1). Traced.

    Returns:
        A transformation that leaves updates as they are.

    Raises:
        ValueError: if `learning_rate` is not positive or `decay` is outside [0, 1).
    """
    if known(learning_rate) and not learning_rate > 0:
        raise ValueError(f"lr_estimate: learning_rate must be positive, got {learning_rate}.")
    refuse_decays("lr_estimate", decay=decay)

    def init(params):
        zero = jnp.zeros((), jnp.result_type(jnp.float32, *jax.tree.leaves(params)))
        previous = optax.tree.zeros_like(widen(params))
        return LREstimateState(jnp.zeros((), jnp.int32), previous, zero, zero, zero)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        present = moderate(widen(updates))
        seen = state.count > 0
        size = _total(state.previous)
        change = _total(optax.tree.sub(state.previous, present))

        def averaged(before, new):
            new = decay * before + (1 - decay) * new
            return jnp.where(seen, new, before).astype(before.dtype)

        # The bias of averages that start at 0 cancels in their quotient.
        size, change = averaged(state.size, size), averaged(state.change, change)
        estimate = (learning_rate * quotient(size, change)).astype(size.dtype)
        return updates, LREstimateState(state.count + 1, present, size, change, estimate)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def entrywise_lr_estimate(previous: PyTree, updates: PyTree, *, learning_rate: Scalar) -> PyTree:
    """The learning rate of each entry from two consecutive updates, 0 where they are equal.

    Args:
        previous: d₀, of plain gradient descent at a constant rate.
        updates: d₁, in the same structure and shapes.
        learning_rate: ε, that rate. Traced.

    Returns:
        Signed rates in float32 at least; negative where the loss is concave.
    """

    def one(d0, d1):
        return (learning_rate * quotient(d0, d0 - d1)).astype(d0.dtype)

    return jax.tree.map(one, widen(previous), widen(updates))


@checked
def one_cycle_momentum(
    transition_steps: int,
    *,
    base: Scalar = 0.95,
    trough: Scalar = 0.85,
    pct_start: float = 0.3,
    shape: Literal["cosine", "linear"] = "cosine",
) -> optax.Schedule:
    """The momentum of a one-cycle policy: lowest when the learning rate is highest.

    Both are set by `optax.inject_hyperparams(optax.sgd)(learning_rate=..., momentum=...)`.

    Args:
        transition_steps: length of the cycle, as in the schedule of the learning rate. Static.
        base: momentum at both ends. Traced.
        trough: momentum in between. Traced.
        pct_start: the share of the cycle after which the trough is reached. Static.
        shape: as the schedule of the learning rate. Static.

    Returns:
        A schedule.

    Raises:
        ValueError: if `transition_steps` is below 1 or `pct_start` is outside (0, 1).
    """
    if transition_steps < 1:
        raise ValueError(
            f"one_cycle_momentum: transition_steps must be at least 1, got {transition_steps}."
        )
    if not 0 < pct_start < 1:
        raise ValueError(f"one_cycle_momentum: pct_start must be between 0 and 1, got {pct_start}.")
    turn = int(pct_start * transition_steps)
    # optax interpolates between values whose ratios are known numbers: from 1 to 2 and back.
    cycle = optax.piecewise_interpolate_schedule(shape, 1.0, {turn: 2.0, transition_steps: 0.5})
    return lambda count: base + (trough - base) * (cycle(count) - 1)


def _total(tree: PyTree) -> Float[Array, ""]:
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
    return sum(
        (jnp.sum(jnp.abs(x), dtype=dtype) for x in jax.tree.leaves(tree)),
        start=jnp.zeros((), dtype),
    )
