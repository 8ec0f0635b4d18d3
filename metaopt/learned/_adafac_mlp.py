"""A per-parameter MLP that also sees factored second moments and learns its decays.

For every entry of a tensor, an MLP (39 -> 4 -> 4 -> 2) maps features, each divided by its root mean
square n(x) = x / √(1e-5 + mean(x²)) over the tensor, and a clock to a direction and a log scale:

    (a, s) = network(n(x_1), ..., n(x_28), tanh(t/τ_1 - 1), ..., tanh(t/τ_11 - 1))
    p <- p - step_mult · a · exp(exp_mult · s)

with t the steps taken before this one. Features, with momenta m (decays 0.9, 0.99, 0.999), second
moment r (0.999), factored moments row, col (0.9, 0.99, 0.999), the factored preconditioner F, all
updated with g, and ρ = 1/√(r + 1e-6):

    g, p, m, r, mρ, ρ, Fg, row, col, 1/√(row + 1e-8), 1/√(col + 1e-8), Fm

Below two axes, with full moments v in place of the factored ones, `row` and `col` are both v and
the last feature is m/√(v + 1e-6). Each decay is learned through an offset x, 0 at first:

    b = 1 - (1 - b_0) exp(10 x)

and clipped to [0, 1], except that of a momentum, which turns negative for large x.

Metz et al. 2022, arXiv:2203.11860 ("AdafacMLPLOpt", small_fc_lopt).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import (
    Factored,
    ema,
    factored_rsqrt,
    factored_update,
    factored_zeros,
    init_leaves,
    map_leaves,
    rsqrt_factors,
    tanh_clock,
    zeros,
)
from metaopt.learned._network import (
    after_first,
    bias,
    hidden_sizes,
    mix,
    mix_normalised,
    network_init,
    network_of_entries,
)

DECAYS = {"momenta": (0.9, 0.99, 0.999), "second": (0.999,), "factored": (0.9, 0.99, 0.999)}
# First-layer weights: planes of every tensor, rows and columns, preconditioned momenta, the clock.
COMMON, ROWS_AND_COLS = slice(0, 13), slice(13, 25)
PRECONDITIONED, CLOCK = slice(25, 28), slice(28, 39)
NUM_FEATURES = 39
NORM_EPS = 1e-5


class AdafacMLPMoments(NamedTuple):
    """Accumulators; in the state each field is a tree like the parameters."""

    momenta: Float[Array, "3 ..."]
    second: Float[Array, "1 ..."]
    factored: Factored


class AdafacMLPState(NamedTuple):
    """Steps taken, and the accumulators."""

    count: Int[Array, ""]
    moments: AdafacMLPMoments


@checked
def adafac_mlp(
    *,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    step_mult: Scalar = 1e-3,
    exp_mult: Scalar = 1e-3,
) -> LearnedOptimizer:
    """A tiny network on Adafactor-like features, with learned decays: 197 numbers in all.

    It sees neither the loss nor the planned number of steps. Gradients are not clipped: in float32,
    one above 1e19, whose square is not finite, turns its tensor into NaN.

    Args:
        hidden_size: width of the hidden layers; 32 is the other usual value. Static.
        hidden_layers: their number. Static.
        step_mult: multiplies steps. Traced.
        exp_mult: multiplies the second output before the exponential. Traced.

    Returns:
        A learned optimizer. `theta` is `{"decays": {"momenta": (3,), "second": (1,), "factored":
        (3,)}, "network": {"linear_0": {"w": (39, h), "b": (h,)}, "linear_1": {"w": (h, h), ...},
        "linear_2": {"w": (h, 2), ...}}}`; features in the order above. Accumulators are float32 at
        least; memory is four numbers per parameter, and seven below two axes.

    Raises:
        ValueError: if `hidden_size` or `hidden_layers` is below 1; in `update`, if it is not
            given the parameters.
    """
    sizes = (NUM_FEATURES, *hidden_sizes("adafac_mlp", hidden_size, hidden_layers), 2)

    def optimizer(theta, *, num_steps=None):
        del num_steps

        def init(params):
            return AdafacMLPState(jnp.zeros((), jnp.int32), init_leaves(zero_moments, params))

        def update(updates, state, params=None, **extra):
            del extra
            if params is None:
                raise ValueError(
                    "adafac_mlp: update got no params; pass update(grads, state, params)."
                )

            def step(grad, param, moments):
                # Offsets, as weights, may be of less precision than the accumulators.
                own = jax.tree.map(lambda x: x.astype(grad.dtype), theta)
                moments = accumulate(own["decays"], moments, grad)
                direction, log_scale = network_outputs(own, grad, param, moments, state.count)
                return -step_mult * direction * jnp.exp(exp_mult * log_scale), moments

            updates, moments = map_leaves(step, updates, params, state.moments)
            count = jnp.asarray(optax.safe_increment(state.count))
            return updates, AdafacMLPState(count, moments)

        return optax.GradientTransformationExtraArgs(init, update)

    return checked_optimizer("adafac_mlp", lambda key: theta_init(key, sizes), optimizer)


def theta_init(key: PRNGKeyArray, sizes: tuple[int, ...]) -> PyTree:
    """Decays at their base values, and a fresh network."""
    offsets = {name: jnp.zeros(len(decays)) for name, decays in DECAYS.items()}
    return {"decays": offsets, "network": network_init(key, sizes)}


def zero_moments(param) -> AdafacMLPMoments:
    """Accumulators of one tensor."""
    return AdafacMLPMoments(
        zeros(param, len(DECAYS["momenta"])),
        zeros(param, len(DECAYS["second"])),
        factored_zeros(param, len(DECAYS["factored"])),
    )


def accumulate(offsets, moments: AdafacMLPMoments, grad: Array) -> AdafacMLPMoments:
    """The accumulators with one more gradient."""

    def decays(name):
        base = jnp.asarray(DECAYS[name], grad.dtype)
        return 1 - (1 - base) * jnp.exp(10 * offsets[name])

    return AdafacMLPMoments(
        ema(moments.momenta, grad, decays("momenta")),
        ema(moments.second, jnp.square(grad), jnp.clip(decays("second"), 0, 1)),
        factored_update(moments.factored, grad, jnp.clip(decays("factored"), 0, 1)),
    )


def network_outputs(theta, grad, param, moments, count, *, num_outputs: int = 2) -> Array:
    """The network's first outputs for every entry."""
    theta = theta["network"]
    weights, offset = theta["linear_0"]["w"], theta["linear_0"]["b"]
    # The clock is the same for all entries, so it only shifts the bias.
    offset = offset + mix(weights[CLOCK], tanh_clock(count, grad.dtype))
    common, preconditioned = weights[COMMON], weights[PRECONDITIONED]
    row, col, row_rsqrt, col_rsqrt = jnp.split(weights[ROWS_AND_COLS], 4)
    arrays = (grad[None], param[None], moments.momenta, moments.second)
    factored = moments.factored

    def first_layer(weights, planes):
        weights, planes = jnp.concatenate(weights), jnp.concatenate(planes)
        return mix_normalised(weights, planes, eps=NORM_EPS, num_axes=grad.ndim)

    if grad.ndim < 2:
        # Row and column features are the same here, so their weights add up.
        full, (g, *_, m, _) = factored.row, arrays
        planes = _common(*arrays, factored_rsqrt(factored, grad.shape) * g)
        planes += [full, jax.lax.rsqrt(full + 1e-8), m * jax.lax.rsqrt(full + 1e-6)]
        weights = [common, row + col, row_rsqrt + col_rsqrt, preconditioned]
        hidden = first_layer(weights, planes)
        return after_first(theta, hidden + bias(offset, hidden), num_outputs=num_outputs)

    def features(g, p, m, r, row, col):
        factor = row * col
        return [*_common(g, p, m, r, factor * g), factor * m]

    # Twelve features vary along one axis only: their products are vectors, added to the planes.
    vectors = [
        first_layer(w, [moment, jax.lax.rsqrt(moment + 1e-8)])
        for moment, w in ((factored.row, [row, row_rsqrt]), (factored.col, [col, col_rsqrt]))
    ]
    return network_of_entries(
        theta,
        jnp.concatenate([common, preconditioned]),
        offset,
        features,
        (*arrays, *rsqrt_factors(factored, grad.shape)),
        vectors,
        eps=NORM_EPS,
        num_outputs=num_outputs,
        shape=grad.shape,
    )


def _common(g, p, m, r, preconditioned_g) -> list[Array]:
    """The planes of every tensor."""
    rsqrt = jax.lax.rsqrt(r + 1e-6)
    return [g, p, m, r, m * rsqrt, rsqrt, preconditioned_g]
