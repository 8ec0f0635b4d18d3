"""What VeLO, Celo and Celo2 share: a small network for every entry of every tensor.

Its inputs are thirty planes, each divided by its root mean square over the tensor. With momenta m
(decays 0.9, 0.99, 0.999), second moment r, factored moments row, col (0.9, 0.99, 0.999) and the
factored preconditioner F, all updated with g, and ρ = 1/√(r + ε):

    g, clip(g, ±0.1), p, m, r, mρ, ρ, Fg, gρ,   and from two axes on
    row, col, 1/√(row + 1e-8), 1/√(col + 1e-8), Fm

Below two axes the last fifteen are absent (Celo2), or, with the full moments v in place of the
factored ones, `row` and `col` are both v and the last feature is m/√v (VeLO, Celo), v being at
least 1e-24 there, because the derivative of 1/√v is not finite at what a dead gradient leaves.

Metz et al. 2022, arXiv:2211.09760, App. A.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from metaopt.core import Scalar
from metaopt.learned._features import (
    Factored,
    ema,
    factored_rsqrt,
    factored_update,
    factored_zeros,
    rsqrt_factors,
    zeros,
)
from metaopt.learned._network import (
    after_first,
    bias,
    mix_normalised,
    network_of_entries,
)

DECAYS = (0.9, 0.99, 0.999)
NUM_FEATURES = 30
# First-layer weights: planes of every tensor, rows and columns, preconditioned momenta.
COMMON, ROWS_AND_COLS, PRECONDITIONED = slice(0, 15), slice(15, 27), slice(27, 30)


class EntryMoments(NamedTuple):
    """Accumulators; in the state of an optimizer each field is a tree like the parameters."""

    momenta: Float[Array, "3 ..."]
    second: Float[Array, "1 ..."]
    factored: Factored


def zero_moments(param: Array) -> EntryMoments:
    """Accumulators of one tensor."""
    num = len(DECAYS)
    return EntryMoments(zeros(param, num), zeros(param, 1), factored_zeros(param, num))


def accumulate(moments: EntryMoments, grad: Array, *, second_decay: Scalar) -> EntryMoments:
    """Accumulates one gradient."""
    return EntryMoments(
        ema(moments.momenta, grad, DECAYS),
        ema(moments.second, jnp.square(grad), (second_decay,)),
        factored_update(moments.factored, grad, DECAYS),
    )


def entry_outputs(
    theta: PyTree,
    grad: Float[Array, "..."],
    param: Float[Array, "..."],
    moments: EntryMoments,
    *,
    eps: float,
    norm_eps: float,
    num_axes: int,
    num_outputs: int,
    full_below_two_axes: bool,
) -> Float[Array, "num_outputs ..."]:
    """The first outputs of the network for every entry of one tensor, of one axis at least.

    Args:
        theta: layers as in `_network`; the first has one row per feature, in the order above.
        grad: the gradient that `moments` were updated with last.
        param: the tensor.
        moments: updated accumulators.
        eps: that of ρ.
        norm_eps: added to a feature's mean square.
        num_axes: trailing axes that mean squares are taken over.
        num_outputs: how many outputs to compute.
        full_below_two_axes: whether full moments stand in for the factored ones.

    Returns:
        Outputs, first axis first.
    """
    theta = jax.tree.map(lambda x: x.astype(grad.dtype), theta)
    weights, offset = theta["linear_0"]["w"], theta["linear_0"]["b"]

    def first_layer(weights, features):
        planes = jnp.concatenate(features)
        return mix_normalised(jnp.concatenate(weights), planes, eps=norm_eps, num_axes=num_axes)

    def finish(hidden, *others):
        hidden = sum(others, hidden) + bias(offset, hidden)
        return after_first(theta, hidden, num_outputs=num_outputs)

    arrays, factored = (grad[None], param[None], moments.momenta, moments.second), moments.factored
    common, preconditioned = weights[COMMON], weights[PRECONDITIONED]
    row, col, row_rsqrt, col_rsqrt = jnp.split(weights[ROWS_AND_COLS], 4)
    if grad.ndim >= 2:

        def features(g, p, m, r, row, col):
            factor = row * col
            return [*_common(g, p, m, r, factor * g, eps), factor * m]

        # Twelve features vary along one axis only: their products are vectors, added to the planes.
        vectors = [
            first_layer(w, [moment, jax.lax.rsqrt(moment + 1e-8)])
            for moment, w in ((factored.row, [row, row_rsqrt]), (factored.col, [col, col_rsqrt]))
        ]
        factors = rsqrt_factors(factored, grad.shape)
        if num_axes < grad.ndim:
            hidden = first_layer([common, preconditioned], features(*arrays, *factors))
            return finish(hidden, *vectors)
        return network_of_entries(
            theta,
            jnp.concatenate([common, preconditioned]),
            offset,
            features,
            (*arrays, *factors),
            vectors,
            eps=norm_eps,
            num_outputs=num_outputs,
            shape=grad.shape,
        )
    g, _, m, _ = arrays
    planes = _common(*arrays, factored_rsqrt(factored, grad.shape) * g, eps)
    if not full_below_two_axes:
        return finish(first_layer([common], planes))
    # Row and column features are the same here, so their weights add up.
    v = factored.row
    planes += [v, jax.lax.rsqrt(v + 1e-8), m * jax.lax.rsqrt(jnp.maximum(v, 1e-24))]
    return finish(first_layer([common, row + col, row_rsqrt + col_rsqrt, preconditioned], planes))


def _common(g, p, m, r, preconditioned_g, eps) -> list[Array]:
    """The planes of every tensor."""
    rsqrt = jax.lax.rsqrt(r + eps)
    return [g, jnp.clip(g, -0.1, 0.1), p, m, r, m * rsqrt, rsqrt, preconditioned_g, g * rsqrt]
