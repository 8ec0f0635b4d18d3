"""STEP: Adam whose second moment stands still from the moment when masks come on.

    dense   u = m̂ / (√v̂ + ε)           Adam, until step T
    sparse  u = m̂ / √(v̂_T + ε)         m goes on, v does not
    T = the first step at which mean of Zₜ over a window < ε,  in [T_min, T_max];
    Zₜ = mean over coordinates of |vₜ − vₜ₋₁|,  or their geometric mean

Lu et al. 2023, arXiv:2302.01172, after a published program: gradients through N:M masks spoil v, so
it is learned before. ε is inside the root of the sparse phase: weights without a gradient before T
have v = 0, and SR-STE pulls at them. Masks are the model's business; whether they are on is in the
state:

    weights = jnp.where(is_sparse(state), ste_sparse(w, nm_mask(w)), w)
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from metaopt import tree
from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import check_sign
from metaopt.optimizers._numerics import (
    known,
    moderate,
    quotient,
    refuse_decays,
    root,
    wide_zeros,
    widen,
)

_Mean = Literal["arithmetic", "geometric"]


class StepAdamState(NamedTuple):
    """Moments, and when the second one stopped.

    Attributes:
        count: steps taken.
        mu: first moment, float32 at least.
        nu: second moment, likewise; constant in the sparse phase.
        changes: Z of the last steps, a ring.
        switched_at: T; 0 while dense.
    """

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    changes: Float[Array, " window"]
    switched_at: Int[Array, ""]


@checked
def scale_by_step_adam(
    *,
    max_steps: Scalar,
    min_steps: Scalar = 1,
    window: int = 1000,
    mean: _Mean = "arithmetic",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by Adam's direction, with a second moment that is frozen in time.

    Args:
        max_steps: T_max, the last step that may be dense, such as half of the run: if the loss has
            converged by then, v is so small that the sparse phase diverges. Traced.
        min_steps: T_min, such as a tenth of the run. Traced.
        window: steps over which Z is averaged, 1/(1 − b2) in the paper. Static.
        mean: of coordinates, in Z. Static.
        b1: decay of the first moment. Traced.
        b2: decay of the second moment. Traced.
        eps: ε, also what Z is compared with. Traced.

    Returns:
        A transformation whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if a decay is outside [0, 1), `eps` is negative, `window` below 1, or
            `max_steps` below `min_steps`.
    """
    refuse_decays("scale_by_step_adam", b1=b1, b2=b2)
    check_sign("scale_by_step_adam", strict=False, eps=eps)
    if window < 1:
        raise ValueError(f"scale_by_step_adam: window must be at least 1, got {window}.")
    if known(min_steps) and known(max_steps) and not min_steps <= max_steps:
        raise ValueError(
            f"scale_by_step_adam: max_steps={max_steps} is below min_steps={min_steps}; no step is "
            "left for the switch."
        )

    def init(params):
        zeros, zero = wide_zeros(params), jnp.zeros((), jnp.int32)
        return StepAdamState(zero, zeros, zeros, jnp.zeros(window), zero)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        grads = moderate(widen(updates))
        count = jnp.asarray(optax.safe_increment(state.count))
        dense = state.switched_at == 0
        mu = _like(optax.tree.update_moment(grads, state.mu, b1, 1), grads)
        moved = _like(optax.tree.update_moment(grads, state.nu, b2, 2), grads)
        nu = tree.where(dense, moved, state.nu)
        change = _mean_change(nu, state.nu, mean).astype(state.changes.dtype)
        changes = state.changes.at[state.count % window].set(change)
        settled = (count >= window) & (jnp.mean(changes) < eps)
        now = dense & (count >= min_steps) & (settled | (count >= max_steps))
        v_hat = optax.tree.bias_correction(nu, b2, jnp.where(dense, count, state.switched_at))

        def direction(m, v, like):
            size = jnp.where(dense, root(v) + eps, root(v + eps))
            return quotient(m, size).astype(like.dtype)

        new = jax.tree.map(direction, optax.tree.bias_correction(mu, b1, count), v_hat, updates)
        switched_at = jnp.where(now, count, state.switched_at)
        return new, StepAdamState(count, mu, nu, changes, switched_at)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def step_adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    max_steps: Scalar,
    min_steps: Scalar = 1,
    window: int = 1000,
    mean: _Mean = "arithmetic",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """STEP as an optimizer.

    SR-STE belongs to the sparse phase: add `sr_ste(decay=2e-4 * is_sparse(state))` to the gradients
    before they come here.

    Args:
        learning_rate: step size, a scalar or a schedule. Traced.
        max_steps: as in `scale_by_step_adam`.
        min_steps: as there.
        window: as there.
        mean: as there.
        b1: as there.
        b2: as there.
        eps: as there.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `scale_by_step_adam`.
    """
    scale = scale_by_step_adam(
        max_steps=max_steps, min_steps=min_steps, window=window, mean=mean, b1=b1, b2=b2, eps=eps
    )
    return optax.with_extra_args_support(
        optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
    )


@checked
def is_sparse(state: Any) -> Bool[Array, ""]:
    """Whether the next gradient is to be taken through the masks.

    Args:
        state: of `step_adam`, or of a chain with it.

    Raises:
        ValueError: if there is no such state in it.
    """
    switched_at = optax.tree.get(state, "switched_at")
    if switched_at is None:
        raise ValueError("is_sparse: state is none of step_adam; pass the state of the optimizer.")
    return switched_at > 0


def _like(values: PyTree, grads: PyTree) -> PyTree:
    """Settings that are wider than the parameters do not widen the state."""
    return tree.cast_like(values, grads)


def _mean_change(new, old, mean):
    """Z; a decision hangs on it, which has no derivative."""
    pairs = zip(*(jax.tree.leaves(jax.lax.stop_gradient(x)) for x in (new, old)), strict=True)
    changes = jnp.concatenate([jnp.abs(a - b).ravel() for a, b in pairs])
    return jnp.mean(changes) if mean == "arithmetic" else jnp.exp(jnp.mean(jnp.log(changes)))
