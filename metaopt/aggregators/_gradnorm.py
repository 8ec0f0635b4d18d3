"""GradNorm: loss weights that are learned, so that all objectives train at the same rate.

    Gᵢ = wᵢ |∇_W Lᵢ|,    rᵢ = (Lᵢ / Lᵢ(0)) / mean,    target_i = mean(G) rᵢ^α   (a constant)
    log form:     Σᵢ |log Gᵢ - log targetᵢ|  over z,   w = m softmax(z)
    linear form:  Σᵢ |Gᵢ - targetᵢ|          over w,   then w ← m w / Σ w

with W the last layer that the objectives share. Chen et al. 2018, arXiv:1711.02257, algorithm 1,
is the linear form. In it a weight may cross zero, where it stays, so it has a floor here; the log
form cannot, and is not dominated by whichever loss has the longest gradient. Gᵢ is linear in wᵢ, so
no gradient is differentiated a second time. Model and weights are updated at the same point:
`weights` first, for the model's step, then `update`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from metaopt.aggregators._aggregator import num_rows, wide
from metaopt.aggregators._gramian import check_at_least
from metaopt.core import Scalar, checked

_TINY = 1e-20


class GradNormState(NamedTuple):
    """What is carried from step to step.

    Attributes:
        raw: z of the log form, w of the linear one.
        initial_losses: Lᵢ(0).
        opt_state: of the optimizer of the weights.
    """

    raw: Float[Array, " m"]
    initial_losses: Float[Array, " m"]
    opt_state: Any


class GradNorm(NamedTuple):
    """A controller of loss weights.

    Attributes:
        init: `(initial_losses) -> state`.
        weights: `(state) -> [m]`, positive, of sum m: what to multiply losses or gradients by.
        update: `(state, losses, lengths) -> state`, with the `row_lengths` of the unweighted
            gradients of the shared layer.
    """

    init: Callable[[Float[Array, " m"]], GradNormState]
    weights: Callable[[GradNormState], Float[Array, " m"]]
    update: Callable[..., GradNormState]


@checked
def gradnorm(
    weight_opt: optax.GradientTransformation,
    *,
    alpha: Scalar = 0.12,
    form: Literal["log", "linear"] = "log",
    floor: Scalar = 1e-3,
) -> GradNorm:
    """Weights that lengthen the gradients of objectives which lag behind.

    Args:
        weight_opt: optimizer of the weights, such as `optax.adam(0.025)`.
        alpha: how much more an objective gets that trains slowly: 0 makes all gradients equally
            long, the paper has 0.12 for like tasks and 1.5 for unlike ones. Traced.
        form: what is minimised. Static.
        floor: least weight of the linear form before weights are renormalised. Traced.

    Returns:
        The controller. `initial_losses` are the losses of the first step, or, where these may be
        near zero, what they would be by chance, such as log C for C classes.

    Raises:
        ValueError: if `floor` is negative.
    """
    check_at_least("gradnorm", 0, floor=floor)
    opt = optax.with_extra_args_support(weight_opt)

    def init(initial_losses):
        losses = wide(initial_losses)
        raw = jnp.zeros_like(losses) if form == "log" else jnp.ones_like(losses)
        return GradNormState(raw, losses, opt.init(raw))

    def weights_of(raw):
        return len(raw) * jax.nn.softmax(raw) if form == "log" else raw

    def weights(state):
        return weights_of(state.raw)

    def update(state, losses, lengths):
        losses, lengths = wide(losses), wide(lengths)
        ratios = losses / jnp.maximum(state.initial_losses, _TINY)
        rates = ratios / jnp.maximum(jnp.mean(ratios), _TINY)

        norms = weights_of(state.raw) * lengths
        target = jnp.mean(norms) * jnp.maximum(rates, _TINY) ** alpha
        target = jax.lax.stop_gradient(target)

        def distance(raw):
            if form == "linear":
                return jnp.sum(jnp.abs(raw * lengths - target))
            # log Gᵢ = log m + log softmax(z)ᵢ + log |∇Lᵢ|; a loss without gradient has no say.
            rest = jnp.log(len(raw) * jnp.maximum(lengths, _TINY) / jnp.maximum(target, _TINY))
            gaps = jnp.abs(jax.nn.log_softmax(raw) + rest)
            return jnp.sum(jnp.where(lengths > _TINY, gaps, 0.0))

        grads = jax.grad(distance)(state.raw)
        moves, opt_state = opt.update(grads, state.opt_state, state.raw)
        raw = jax.tree.map(jnp.add, state.raw, moves)
        if form == "linear":
            raw = jnp.maximum(raw, floor)
            raw = len(raw) * raw / jnp.sum(raw)
        return GradNormState(raw, state.initial_losses, opt_state)

    return GradNorm(init, weights, update)


def row_lengths(jacobian: PyTree) -> Float[Array, " m"]:
    """Lengths of the rows of a Jacobian tree, in float32 at least.

    Args:
        jacobian: the parameters' tree, or a part of it, with a leading axis m.

    Returns:
        |gᵢ|; its derivative is 0 where a row is zero, and large entries do not overflow.
    """
    count = num_rows(jacobian)
    rows = [wide(x).reshape(count, -1) for x in jax.tree.leaves(jacobian)]
    largest = [jnp.max(jnp.abs(x), axis=1, initial=0.0) for x in rows]
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack(jnp.broadcast_arrays(*largest)), axis=0))
    scale = jnp.where(largest > 0, largest, 1.0)
    squares = sum(jnp.sum((x / scale[:, None]) ** 2, axis=1) for x in rows)
    return scale * jnp.sqrt(jnp.where(largest > 0, squares, 1.0)) * (largest > 0)
