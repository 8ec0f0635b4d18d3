"""OPT-AMSGrad: AMSGrad that already steps along its guess of the next gradient.

    θ <- β1 θ + (1-β1) g,   v <- β2 v + (1-β2) (g − m)²,   v̂ <- max(v̂, v)
    w½ <- w½ − η θ/√v̂,   m <- predict(last gradients),   w = w½ − η h/√v̂,   h = β1 θ + (1-β1) m

Wang et al. 2021 (ACML), arXiv:1903.01435; v and v̂ begin at ε, θ and m at 0. The second moment is
that of the surprise: the better the guess, the longer the steps. Any function may predict, learned
ones too. The published one is regularised minimal polynomial extrapolation (Scieur et al. 2016,
arXiv:1606.04133): from differences U of consecutive gradients, uᵢ = gᵢ₊₁ − gᵢ,

    z = (UᵀU / tr(UᵀU) + λ I)⁻¹ 1,   c = z / Σz,   m = Σᵢ cᵢ gᵢ = g − Σᵢ (c₁ + … + cᵢ) uᵢ

with g the last gradient. Kept are g, U in a ring, and UᵀU, of which each step changes one row: no
large array is shifted, and none is multiplied by itself.

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


class GradientHistory(NamedTuple):
    """The last gradients, as differences of consecutive ones; `stacked_gradients` restores them.

    Attributes:
        count: gradients seen.
        newest: the last one.
        differences: of the t-th gradient and the one before, in place t modulo their number along a
            first axis; 0 where there is none yet.
        products: inner products of all pairs of them, over the whole tree; to derivatives they are
            constants.
    """

    count: Int[Array, ""]
    newest: PyTree
    differences: PyTree
    products: Float[Array, "differences differences"]


# The next gradient from the last ones.
Predictor = Callable[[GradientHistory], PyTree]


class OptAMSGradState(NamedTuple):
    """Trees like the parameters, in float32 at least.

    Attributes:
        count: steps taken.
        mu: θ, moving average of the gradients.
        nu: v, moving average of squared surprises.
        nu_max: v̂, its largest value so far.
        predicted: m, the guess of the next gradient.
        ahead: h/√v̂, what the parameters are ahead of w½, in units of the learning rate.
        history: of the gradients.
    """

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    nu_max: PyTree
    predicted: PyTree
    ahead: PyTree
    history: GradientHistory


@checked
def minimal_polynomial_extrapolation(*, ridge: Scalar = 1e-8) -> Predictor:
    """Predicts the limit of a sequence of gradients as a mean with weights that sum to 1.

    One set of weights serves the whole tree. They count as constants in derivatives: they solve a
    system that is nearly singular. With fewer than three gradients, or where sums of the squares of
    their differences are not numbers of the dtype, the last one is the prediction.

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

    def predict(history):
        sums = jax.lax.stop_gradient(_partial_sums(history, ridge))

        def extrapolated(newest, differences):
            # A sum of products fuses with what follows; a matrix product would not.
            back = sum(sums[i].astype(newest.dtype) * d for i, d in enumerate(differences))
            return newest - back

        return jax.tree.map(extrapolated, history.newest, history.differences)

    return predict


@checked
def stacked_gradients(history: GradientHistory) -> PyTree:
    """The last gradients, for predictors that look at them one by one.

    Args:
        history: what a predictor is given.

    Returns:
        A tree like the gradients, with a new first axis, oldest first; 0 where there is none yet.
    """

    def stacked(newest, differences):
        size = differences.shape[0]
        newest_first = (history.count - jnp.arange(size)) % size
        older = newest[None] - jnp.cumsum(differences[newest_first], axis=0)
        stack = jnp.concatenate([newest[None], older])[::-1]
        present = jnp.arange(size, -1, -1) < history.count
        return jnp.where(present.reshape(-1, *[1] * newest.ndim), stack, 0)

    return jax.tree.map(stacked, history.newest, history.differences)


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
        predict: `(history) -> gradient`, the guess of the next one from a `GradientHistory`, of
            which `stacked_gradients` makes a stack, oldest first. None stands for
            `minimal_polynomial_extrapolation()`. Static.
        num_gradients: gradients that it is made of. Static.

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
        history = _no_history(zeros, num_gradients - 1)
        return OptAMSGradState(history.count, zeros, start, start, zeros, zeros, history)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        grads = moderate(widen(updates))
        count = state.count + 1
        surprise = optax.tree.sub(grads, state.predicted)
        mu = tree.cast_like(optax.tree.update_moment(grads, state.mu, b1, 1), grads)
        nu = tree.cast_like(optax.tree.update_moment(surprise, state.nu, b2, 2), grads)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        history = _with_gradient(state.history, grads)
        predicted = moderate(tree.cast_like(predict(history), grads))
        momentum = optax.tree.update_moment(predicted, mu, b1, 1)
        ahead = tree.cast_like(_scaled(momentum, nu_max), grads)
        change = optax.tree.add(_scaled(mu, nu_max), optax.tree.sub(ahead, state.ahead))
        new = OptAMSGradState(count, mu, nu, nu_max, predicted, ahead, history)
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


def _no_history(zeros: PyTree, size: int) -> GradientHistory:
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(zeros))
    differences = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), zeros)
    return GradientHistory(
        jnp.zeros((), jnp.int32), zeros, differences, jnp.zeros((size, size), dtype)
    )


def _with_gradient(history: GradientHistory, grads: PyTree) -> GradientHistory:
    """The oldest difference gives way to the newest one."""
    count, size = history.count + 1, len(history.products)
    place, products = count % size, history.products

    def difference(g, before):
        # The first gradient has none before it.
        return jnp.where(count > 1, g - before, 0)

    new = jax.tree.map(difference, grads, history.newest)
    differences = jax.tree.map(
        lambda kept, d: jax.lax.dynamic_update_index_in_dim(kept, d, place, 0),
        history.differences,
        new,
    )
    row = jnp.zeros(size, products.dtype)
    for kept, d in zip(jax.tree.leaves(differences), jax.tree.leaves(new), strict=True):
        row = row + _inner_products(kept, d).astype(row.dtype)
    # Weights that are made of them solve a system that is nearly singular.
    row = jax.lax.stop_gradient(row)
    products = products.at[place].set(row).at[:, place].set(row)
    return GradientHistory(count, grads, differences, products)


def _inner_products(rows, d) -> Float[Array, "rows"]:
    """Of each row with d.

    As a sum along an axis and another one that is a product: XLA on CPU vectorises both, and as one
    matrix product it would write a second copy of the ring to reshape it.
    """
    products = rows * d[None]
    if d.ndim > 1:
        products = products.sum(axis=1).reshape(len(rows), -1)
        ones = jnp.ones(products.shape[1], products.dtype)
        return jnp.dot(products, ones, precision=jax.lax.Precision.HIGHEST)
    return products.sum(axis=1) if d.ndim else products


def _partial_sums(history: GradientHistory, ridge) -> Float[Array, "differences"]:
    """By how much of each difference the extrapolation is behind the last gradient."""
    count, dtype = history.count, jnp.promote_types(history.products.dtype, jnp.float32)
    products = history.products.astype(dtype)
    size = len(products)
    age = (count - jnp.arange(size)) % size
    present = (age < count - 1).astype(dtype)
    trace = jnp.trace(products)
    # Products are rounded: below that the matrix may have lost its sign.
    ridge = ridge + 10 * jnp.finfo(dtype).eps
    matrix = products / jnp.where(trace > 0, trace, 1) + ridge * jnp.eye(size, dtype=dtype)
    solution = jnp.linalg.solve(matrix.astype(dtype), present)
    total = solution.sum()
    usable = (count >= 3) & (trace > 0) & jnp.isfinite(trace) & jnp.isfinite(total) & (total > 0)
    weights = jnp.where(usable, solution / jnp.where(usable, total, 1), 0)
    # A weight is that of the older end of its difference.
    return (age[:, None] <= age[None, :]).astype(dtype) @ weights
