"""OPT-AMSGrad: AMSGrad that already steps along its guess of the next gradient.

    θ <- β1 θ + (1-β1) g,   v <- β2 v + (1-β2) (g − m)²,   v̂ <- max(v̂, v)
    w½ <- w½ − η θ/√v̂,   m <- predict(last gradients),   w = w½ − η h/√v̂,   h = β1 θ + (1-β1) m

Wang et al. 2021 (ACML), arXiv:1903.01435; v and v̂ begin at ε, θ and m at 0. The second moment is
that of the surprise: the better the guess, the longer the steps. Any function may predict, learned
ones too. The published one is regularised minimal polynomial extrapolation (Scieur et al. 2016,
arXiv:1606.04133): from differences U of consecutive gradients,

    z = (UᵀU / tr(UᵀU) + λ I)⁻¹ 1,   c = z / Σz,   m = Σᵢ cᵢ gᵢ

Here w½ is not stored: the change of w is −η [θ/√v̂ + h/√v̂ − (h/√v̂ of the step before)]. With a
constant η nothing else changes; a schedule counts from the step that it is asked for. The matrix is
divided by its trace, which makes λ a pure number. v̂ never forgets, not even the first step, whose
guess was 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt import tree
from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import (
    known,
    moderate,
    quotient,
    refuse_decays,
    root,
    wide_zeros,
    widen,
)

# `(gradients, count) -> gradient`: from the last ones, oldest first along a new first axis, `count`
# of which are there and the others 0.
Predictor = Callable[[PyTree, Int[Array, ""]], PyTree]


class OptAMSGradState(NamedTuple):
    """Trees like the parameters, in float32 at least.

    Attributes:
        count: steps taken.
        mu: θ, moving average of the gradients.
        nu: v, moving average of squared surprises.
        nu_max: v̂, its largest value so far.
        predicted: m, the guess of the next gradient.
        ahead: h/√v̂, what the parameters are ahead of w½, in units of the learning rate.
        gradients: the last ones, oldest first along a first axis.
    """

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    nu_max: PyTree
    predicted: PyTree
    ahead: PyTree
    gradients: PyTree


@checked
def minimal_polynomial_extrapolation(*, ridge: Scalar = 1e-8) -> Predictor:
    """Predicts the limit of a sequence of gradients as a mean with weights that sum to 1.

    One set of weights serves the whole tree. They count as constants in derivatives: they solve a
    system that is nearly singular. With fewer than three gradients the last one is the prediction.

    Args:
        ridge: λ, as a fraction of the trace; rounding adds to it. Traced.

    Returns:
        A predictor for `scale_by_opt_amsgrad`.

    Raises:
        ValueError: if `ridge` is negative.
    """
    if known(ridge) and not ridge >= 0:
        raise ValueError(
            f"minimal_polynomial_extrapolation: ridge must not be negative, got {ridge}; try 1e-8."
        )

    def predict(gradients, count):
        weights = jax.lax.stop_gradient(_weights(gradients, count, ridge))

        def mean(g):
            last = g[-1]
            # Of the two ends of a difference, the older one.
            extrapolated = jnp.tensordot(weights.astype(g.dtype), g[:-1], 1)
            return jnp.where(count < 3, last, extrapolated)

        return jax.tree.map(mean, gradients)

    return predict


@checked
def scale_by_opt_amsgrad(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    predict: Predictor | None = None,
    num_gradients: int = 6,
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by the optimistic direction of AMSGrad.

    Args:
        b1: β1. Traced.
        b2: β2. Traced.
        eps: ε, where v and v̂ begin, in units of squared gradients. Traced.
        predict: `(gradients, count) -> gradient`, the guess of the next one from the last ones,
            oldest first along a new first axis; `count` of them are there, the others 0. None
            stands for `minimal_polynomial_extrapolation()`. Static.
        num_gradients: gradients that are kept for it. Static.

    Returns:
        A transformation whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if a decay is outside [0, 1), `eps` negative or `num_gradients` below 2.
    """
    refuse_decays("scale_by_opt_amsgrad", b1=b1, b2=b2)
    if known(eps) and not eps >= 0:
        raise ValueError(f"scale_by_opt_amsgrad: eps must not be negative, got {eps}; try 1e-8.")
    if num_gradients < 2:
        raise ValueError(
            f"scale_by_opt_amsgrad: num_gradients must be at least 2, got {num_gradients}; try 6."
        )
    predict = minimal_polynomial_extrapolation() if predict is None else predict

    def init(params):
        zeros = wide_zeros(params)
        start = jax.tree.map(lambda x: jnp.full_like(x, eps), zeros)
        none = jax.tree.map(lambda x: jnp.zeros((num_gradients, *x.shape), x.dtype), zeros)
        return OptAMSGradState(jnp.zeros((), jnp.int32), zeros, start, start, zeros, zeros, none)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        grads = moderate(widen(updates))
        count = state.count + 1
        surprise = optax.tree.sub(grads, state.predicted)
        mu = tree.cast_like(optax.tree.update_moment(grads, state.mu, b1, 1), grads)
        nu = tree.cast_like(optax.tree.update_moment(surprise, state.nu, b2, 2), grads)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        gradients = jax.tree.map(
            lambda kept, g: jnp.concatenate([kept[1:], g[None]]), state.gradients, grads
        )
        guess = predict(gradients, jnp.minimum(count, num_gradients))
        predicted = moderate(tree.cast_like(guess, grads))
        momentum = optax.tree.update_moment(predicted, mu, b1, 1)
        ahead = tree.cast_like(_scaled(momentum, nu_max), grads)
        change = optax.tree.add(_scaled(mu, nu_max), optax.tree.sub(ahead, state.ahead))
        new = OptAMSGradState(count, mu, nu, nu_max, predicted, ahead, gradients)
        return tree.cast_like(change, updates), new

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def opt_amsgrad(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    predict: Predictor | None = None,
    num_gradients: int = 6,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad that steps along its guess of the next gradient.

    Args:
        learning_rate: step size η, a scalar or a schedule. Traced.
        b1: as in `scale_by_opt_amsgrad`.
        b2: as there.
        eps: as there.
        predict: as there. Static.
        num_gradients: as there. Static.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `scale_by_opt_amsgrad`.
    """
    direction = scale_by_opt_amsgrad(
        b1=b1, b2=b2, eps=eps, predict=predict, num_gradients=num_gradients
    )
    return optax.with_extra_args_support(
        optax.chain(direction, optax.scale_by_learning_rate(learning_rate))
    )


def _scaled(x: PyTree, second: PyTree) -> PyTree:
    return jax.tree.map(lambda x, v: quotient(x, root(v)), x, second)


def _weights(gradients: PyTree, count, ridge) -> Float[Array, "differences"]:
    """Those of the extrapolation; 0 for gradients that are not there."""
    differences = [g[1:] - g[:-1] for g in jax.tree.leaves(gradients)]
    size = differences[0].shape[0]
    dtype = jnp.result_type(*differences)
    largest = jnp.stack([jnp.max(jnp.abs(d), initial=0).astype(dtype) for d in differences]).max()
    scale = jnp.where(largest > 0, largest, 1)
    rows = [(d / scale).reshape(size, -1).astype(dtype) for d in differences]
    present = jnp.arange(size) > size - count
    products = sum(row @ row.T for row in rows)
    products = jnp.where(present[:, None] & present[None, :], products, 0)
    trace = jnp.trace(products)
    # Products are rounded: below that the matrix may have lost its sign.
    ridge = ridge + 10 * jnp.finfo(dtype).eps
    matrix = products / jnp.where(trace > 0, trace, 1) + ridge * jnp.eye(size, dtype=dtype)
    solution = jnp.linalg.solve(matrix, present.astype(dtype))
    total = solution.sum()
    usable = jnp.isfinite(total) & (total > 0)
    newest = jnp.zeros(size, dtype).at[-1].set(1)
    return jnp.where(usable, solution / jnp.where(usable, total, 1), newest)
