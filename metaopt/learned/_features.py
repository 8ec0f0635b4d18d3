"""What per-parameter rules look at: accumulators, normalised feature planes, a clock.

Features lead: D accumulators of a tensor form one array `[D, *shape]`, F features one array
`[F, *shape]`, so that a network over features is one matrix product over contiguous planes and
an accumulator is sharded as its parameter is. With decay b:

    momentum         m <- b m + (1 - b) g
    second moment    r <- b r + (1 - b) g²
    factored second moment (two axes or more; d0 the longest axis, d1 the second longest):
                     row <- b row + (1 - b) mean_d0(g² + 1e-30)
                     col <- b col + (1 - b) mean_d1(g² + 1e-30)
                     1/√(second moment) ≈ S(row / (mean_d1(row) + 1e-9)) S(col),
                     S(x) = 1/√max(x, 1e-9)

Factored moments: Shazeer and Stern 2018, arXiv:1804.04235, §3; the rest as in Metz et al. 2022,
arXiv:2203.11860, App. B. No accumulator is corrected for its bias.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PyTree

from metaopt.core import Scalar

CLOCK_SCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)


class Factored(NamedTuple):
    """Row and column means of squared gradients; the axis averaged over is kept, with length 1.

    Below two axes nothing is averaged: `row` is the full second moment, and `col` stays 0.
    """

    row: Float[Array, "num ..."]
    col: Float[Array, "num ..."]


def working_dtype(param: Array) -> DTypeLike:
    """The dtype of accumulators and features: that of the parameter, float32 at least."""
    return jnp.promote_types(param.dtype, jnp.float32)


def shared_dtype(params: PyTree) -> DTypeLike:
    """The dtype of what belongs to no tensor in particular: the widest working dtype."""
    return jnp.result_type(jnp.float32, *(working_dtype(x) for x in jax.tree.leaves(params)))


def init_leaves(zeros_of: Callable, params: PyTree) -> Any:
    """The state for `map_leaves`: the structure of `zeros_of(param)`, with trees in its fields.

    A field has the structure of `params`, as in optax's states, so that it is sharded, saved and
    wrapped by the same rules.
    """
    treedef, inner = jax.tree.structure(params), jax.tree.structure(zeros_of(jnp.zeros(1)))
    if not treedef.num_leaves:  # of which there is no transpose: all tensors are masked, say
        return inner.unflatten([params] * inner.num_leaves)
    return jax.tree.transpose(treedef, inner, jax.tree.map(zeros_of, params))


def map_leaves(
    rule: Callable, grads: PyTree, params: PyTree, state: PyTree, *fed: PyTree
) -> tuple[Any, Any]:
    """Maps `rule(grad, param, state, *fed) -> (update, state)` over the tensors of a tree.

    The rule sees working dtypes and at least one axis, of the state, made by `init_leaves`, one
    tensor's share, and of each fed tree what it has in the tensor's place; updates come back in the
    shape and dtype of their parameter.
    """

    def one(grad, param, state, *fed):
        shape, dtype = jnp.shape(param) or (1,), working_dtype(param)
        grad, value = (jnp.reshape(x, shape).astype(dtype) for x in (grad, param))
        update, state = rule(grad, value, state, *fed)
        return jnp.reshape(update, jnp.shape(param)).astype(param.dtype), state

    grads, treedef = jax.tree.flatten(grads)
    if not grads:
        return treedef.unflatten([]), state
    fields, inner = jax.tree.flatten(state, is_leaf=lambda x: jax.tree.structure(x) == treedef)
    shares = zip(*(treedef.flatten_up_to(field) for field in fields), strict=True)
    others = (treedef.flatten_up_to(x) for x in (params, *fed))
    results = [
        one(grad, param, inner.unflatten(share), *rest)
        for grad, share, param, *rest in zip(grads, shares, *others, strict=True)
    ]
    updates = treedef.unflatten([update for update, _ in results])
    shares = [inner.flatten_up_to(new) for _, new in results]
    return updates, inner.unflatten(
        [treedef.unflatten(field) for field in zip(*shares, strict=True)]
    )


def zeros(param: Array, num: int) -> Float[Array, "num ..."]:
    """`num` accumulators for one tensor, split over devices as it is."""
    one = jnp.zeros_like(param, working_dtype(param))
    return jnp.broadcast_to(one, (num, *(param.shape or (1,))))


def ema(average: Array, value: Array, decays: Array | tuple[Scalar, ...]) -> Array:
    """One step of an exponential moving average for each decay; `value` lacks the decay axis."""
    decays = jnp.asarray(decays, average.dtype).reshape((-1,) + (1,) * value.ndim)
    return decays * average + (1 - decays) * value[None]


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The second longest and the longest of two axes or more.

    The sort is stable: of equally long axes the last counts as the longest, so that a square
    matrix has d1 = 0, d0 = 1.
    """
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def factored_zeros(param: Array, num: int) -> Factored:
    """Accumulators for `factored_update`."""
    if len(param.shape) < 2:
        return Factored(row=zeros(param, num), col=jnp.zeros((num, 1), working_dtype(param)))

    second, longest = factored_axes(param.shape)
    row, col = (
        jnp.sum(jnp.zeros_like(param), axis=axis, keepdims=True) for axis in (longest, second)
    )
    return Factored(zeros(row, num), zeros(col, num))


def factored_update(moment: Factored, grad: Array, decays: Array | tuple[float, ...]) -> Factored:
    """Accumulates one gradient."""
    square = jnp.square(grad) + 1e-30
    if grad.ndim < 2:
        return Factored(row=ema(moment.row, square, decays), col=moment.col)
    second, longest = factored_axes(grad.shape)
    return Factored(
        row=ema(moment.row, jnp.mean(square, axis=longest, keepdims=True), decays),
        col=ema(moment.col, jnp.mean(square, axis=second, keepdims=True), decays),
    )


def factored_rsqrt(moment: Factored, shape: tuple[int, ...]) -> Array:
    """About `1/√(second moment)`, `[D, *shape]`: what preconditions gradients and momenta."""
    if len(shape) < 2:
        return jax.lax.rsqrt(jnp.maximum(moment.row + 1e-9, 1e-9))
    row, col = rsqrt_factors(moment, shape)
    return row * col


def rsqrt_factors(moment: Factored, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The two factors of `factored_rsqrt` for two axes or more, each of length 1 along one axis."""
    second, _ = factored_axes(shape)
    mean = jnp.mean(moment.row, axis=second + 1, keepdims=True)
    row = jax.lax.rsqrt(jnp.maximum(moment.row / (mean + 1e-9), 1e-9))
    return row, jax.lax.rsqrt(jnp.maximum(moment.col, 1e-9))


def mean(planes: Float[Array, "features ..."], num_axes: int) -> Array:
    """Mean over the last `num_axes` axes, which are removed."""
    ones = jnp.ones(planes.shape[planes.ndim - num_axes :], planes.dtype)
    # A product, as in `mean_square`.
    total = jnp.tensordot(planes, ones, axes=num_axes, precision=jax.lax.Precision.HIGHEST)
    return total / ones.size


def mean_square(planes: Float[Array, "features ..."], num_axes: int) -> Array:
    """Mean of squares over the last `num_axes` axes, which are removed."""
    kept = tuple(range(planes.ndim - num_axes))
    axes = tuple(range(planes.ndim - num_axes, planes.ndim))
    # A product, because a CPU adds the terms of a plain reduction one at a time.
    total = jax.lax.dot_general(
        planes, planes, ((axes, axes), (kept, kept)), precision=jax.lax.Precision.HIGHEST
    )
    return total / math.prod(planes.shape[axis] for axis in axes)


def normalise(planes: Float[Array, "features ..."], *, eps: float, num_axes: int) -> Array:
    """Divides by `√(eps + mean(x²))`, the mean being over the last `num_axes` axes."""
    scale = jax.lax.rsqrt(eps + mean_square(planes, num_axes))
    return planes * jnp.expand_dims(scale, tuple(range(planes.ndim - num_axes, planes.ndim)))


def tanh_clock(count: Array, dtype: DTypeLike) -> Float[Array, "11"]:
    """`tanh(count/τ - 1)` for eleven time scales τ, from one step to 10⁵."""
    return jnp.tanh(count.astype(dtype) / jnp.asarray(CLOCK_SCALES, dtype) - 1)


def clip_gradient(grad: Array, limit: float = 1000.0) -> Array:
    """Clips entries to ±limit. NaN stays NaN: whoever unrolls sees it and freezes the task."""
    return jnp.clip(grad, -limit, limit)
