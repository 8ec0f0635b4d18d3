"""AdamP and SGDP: no radial part in updates of weights whose scale does not matter.

    p <- p − (p·ŵ) ŵ,  λ <- λ r     if max |cos(g, w)| < δ / √dim(w),     ŵ = w / (‖w‖ + ε)
    w <- w − η (p + λ w)

A loss that does not depend on ‖w‖ has gradients orthogonal to w, which is how such weights are
told. Momentum is not orthogonal; it makes them grow, and so the steps on the sphere shrink. Rows of
a tensor, each belonging to one output, are put to the test first, and if they fail, the tensor as a
whole; tensors with fewer than two axes are left alone. g is the raw gradient, p the direction of
the rule, w the weights before the step.

Heo et al. 2021 (ICLR), arXiv:2006.08217, algorithms 1 and 2. The authors' SGDP projects its
momentum buffer too, by writing into it; the paper does not, nor do we. Nesterov's momentum as in
their code.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from metaopt import tree
from metaopt.core import Scalar, checked
from metaopt.optimizers._adam_direction import adam_direction
from metaopt.optimizers._numerics import (
    known,
    moderate,
    quotient,
    refuse_decays,
    root,
    wide_zeros,
    widen,
)

_HIGHEST = jax.lax.Precision.HIGHEST


@checked
def project_scale_invariant(
    direction: optax.GradientTransformation,
    *,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    weight_decay: Scalar = 0.0,
    eps: Scalar = 1e-8,
    row_axis: Literal[-1, 0] = -1,
) -> optax.GradientTransformationExtraArgs:
    """Projects the updates of a rule, and adds the decay of the weights.

    Which tensors are projected counts as a constant in derivatives. Entries beyond 1e16 in float32,
    of gradients, directions or weights, count as 1e16 in products.

    Args:
        direction: a rule that returns an ascent direction, such as `optax.trace`; it sees gradients
            in float32 at least.
        delta: δ; 0 never projects, a large number always. Traced.
        wd_ratio: r, the share of the decay that projected weights get. Traced.
        weight_decay: λ, decoupled. Traced.
        eps: ε, in units of the weights; norms below it count as ε in the cosines. Traced.
        row_axis: the axis of the outputs: last in kernels of JAX libraries, first in those of
            PyTorch. Static.

    Returns:
        A transformation whose updates have the dtypes of the gradients; its state is that of
        `direction`. It needs params.

    Raises:
        ValueError: if `delta` is negative; in `update`, if params are missing.
    """
    if known(delta) and not delta >= 0:
        raise ValueError(
            f"project_scale_invariant: delta must not be negative, got {delta}; 0 never projects."
        )
    extended = optax.with_extra_args_support(direction)

    def init(params):
        return extended.init(widen(params))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "project_scale_invariant: params is missing; call update(grads, state, params)."
            )
        grads, weights = widen(updates), widen(params)
        proposed, state = extended.update(grads, state, weights, **extra_args)

        def one(g, p, w):
            projected, is_projected = _project(g, p, w, delta, eps, row_axis)
            decay = weight_decay * jnp.where(is_projected, wd_ratio, 1)
            return projected + decay * w

        return tree.cast_like(jax.tree.map(one, grads, proposed, weights), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def adamp(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    nesterov: bool = False,
    row_axis: Literal[-1, 0] = -1,
) -> optax.GradientTransformationExtraArgs:
    """Adam, projected, with decoupled weight decay.

    Args:
        learning_rate: step size η, a scalar or a schedule. Traced.
        b1: decay of the first moment. Traced.
        b2: decay of the second moment. Traced.
        eps: ε of Adam and of the projection. Traced.
        weight_decay: as in `project_scale_invariant`.
        delta: as there.
        wd_ratio: as there.
        nesterov: take b1 m + (1-b1) g for the first moment m. Static.
        row_axis: as there. Static.

    Returns:
        A complete optimizer, which needs params.

    Raises:
        ValueError: if a decay is outside [0, 1), or as in `project_scale_invariant`.
    """
    refuse_decays("adamp", b1=b1, b2=b2)
    projected = project_scale_invariant(
        adam_direction(b1=b1, b2=b2, eps=eps, nesterov=nesterov),
        delta=delta,
        wd_ratio=wd_ratio,
        weight_decay=weight_decay,
        eps=eps,
        row_axis=row_axis,
    )
    return optax.with_extra_args_support(
        optax.chain(projected, optax.scale_by_learning_rate(learning_rate))
    )


@checked
def sgdp(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    eps: Scalar = 1e-8,
    nesterov: bool = False,
    row_axis: Literal[-1, 0] = -1,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent with momentum, projected, with decoupled weight decay.

    Args:
        learning_rate: step size η, a scalar or a schedule. Traced.
        momentum: μ in the buffer b <- μ b + (1 - dampening) g. Traced.
        dampening: share of the gradient that does not enter it. Traced.
        weight_decay: λ (1-μ); the decay is divided by 1-μ, as momentum multiplies steps. Traced.
        delta: as in `project_scale_invariant`.
        wd_ratio: as there.
        eps: as there.
        nesterov: take g + μ b for the direction b. Static.
        row_axis: as there. Static.

    Returns:
        A complete optimizer, which needs params.

    Raises:
        ValueError: if `momentum` is outside [0, 1), or as in `project_scale_invariant`.
    """
    refuse_decays("sgdp", momentum=momentum)
    projected = project_scale_invariant(
        _momentum(momentum, dampening, nesterov),
        delta=delta,
        wd_ratio=wd_ratio,
        weight_decay=weight_decay / (1 - momentum),
        eps=eps,
        row_axis=row_axis,
    )
    return optax.with_extra_args_support(
        optax.chain(projected, optax.scale_by_learning_rate(learning_rate))
    )


def _momentum(decay, dampening, nesterov):
    """The buffer of PyTorch's SGD, whose dampening `optax.trace` does not have."""

    def init(params):
        return optax.TraceState(wide_zeros(params))

    def update(updates, state, params=None):
        del params
        trace = jax.tree.map(lambda g, b: decay * b + (1 - dampening) * g, updates, state.trace)
        trace = tree.cast_like(trace, state.trace)
        ahead = jax.tree.map(lambda g, b: g + decay * b, updates, trace) if nesterov else trace
        return tree.cast_like(ahead, updates), optax.TraceState(trace)

    return optax.GradientTransformation(init, update)


def _project(
    g: Float[Array, "..."], p: Float[Array, "..."], w: Float[Array, "..."], delta, eps, row_axis
) -> tuple[Float[Array, "..."], Bool[Array, ""]]:
    """The direction without its radial part, if need be; and whether there was need."""
    if w.ndim < 2:
        return p, jnp.array(False)
    axes = tuple(i for i in range(w.ndim) if i != row_axis % w.ndim)
    # Squares of larger numbers would overflow.
    g, step, ray = moderate((jax.lax.stop_gradient(g), p, w))

    def of_rows(x, y):
        return jnp.sum(x * y, axis=axes, keepdims=True)

    rows = of_rows(ray, ray), of_rows(step, ray), of_rows(g, g), of_rows(g, ray)
    # Those of the whole are sums of them, written as products with ones: XLA on CPU makes of two
    # sums one, over all entries once more.
    whole = [jnp.dot(x.ravel(), jnp.ones(x.size, x.dtype), precision=_HIGHEST) for x in rows]
    share, rows_found = _radial(rows, w.size // w.shape[row_axis], delta, eps)
    share_whole, whole_found = _radial(whole, w.size, delta, eps)
    share = jnp.where(rows_found, share, jnp.where(whole_found, share_whole, 0))
    return p - share * ray, rows_found | whole_found


def _radial(products, size, delta, eps):
    """(p·w) / (‖w‖ + ε)² of each row, and whether g is nearly orthogonal to w in all of them."""
    ww, pw, gg, gw = products
    length = root(ww)
    sizes = jnp.maximum(root(gg), eps) * jnp.maximum(jax.lax.stop_gradient(length), eps)
    cosines = jnp.abs(quotient(jax.lax.stop_gradient(gw), sizes))
    found = cosines.max(initial=0) < delta / max(size, 1) ** 0.5
    length = length + eps
    return quotient(quotient(pw, length), length), found
