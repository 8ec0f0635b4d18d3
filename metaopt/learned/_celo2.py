"""Celo2: a learned direction of unit size, to be composed like any other (Celo2).

For every entry of a tensor, an MLP (30 -> 8 -> 8) maps features, each divided by its root mean
square (RMS), to a number y; then, over the last two axes of the tensor,

    y <- NewtonSchulz(y)     for matrices, if orthogonalising
    y <- y / √(1e-9 + mean(y²)),        p <- p - learning_rate · (y + weight_decay · p)

so that the learning rate is literally the RMS of a step. Features, with momenta m (decays 0.9,
0.99, 0.999), second moment r (0.95), factored moments row, col (0.9, 0.99, 0.999) and the factored
preconditioner F, all updated with g first clipped to ±1000, and ρ = 1/√(r + 1e-8):

    g, clip(g, ±0.1), p, m, r, mρ, ρ, Fg, gρ,   and from two axes on
    row, col, 1/√(row + 1e-8), 1/√(col + 1e-8), Fm

It sees neither the loss, nor the step, nor the horizon; nor the scale of the gradients, as long as
squared second moments stay above the normaliser's 1e-9. Celo2, 2026, arXiv:2602.19142. Differs from
it: the Frobenius norm in `NewtonSchulz` is guarded inside the root (1e-16), so that it has a
derivative at 0.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._entry_network import (
    NUM_FEATURES,
    accumulate,
    entry_outputs,
    zero_moments,
)
from metaopt.learned._features import clip_gradient, init_leaves, map_leaves, normalise
from metaopt.learned._network import hidden_sizes, network_init

SECOND_DECAY = 0.95
EPS, NORM_EPS = 1e-8, 1e-9


@checked
def scale_by_celo2(
    theta: PyTree, *, orthogonalise: bool = False, norm_axes: int | None = 2
) -> optax.GradientTransformationExtraArgs:
    """The learned direction, of unit RMS and not negated: a sibling of `optax.scale_by_adam`.

    The published optimizer orthogonalises matrices and leaves biases, norms and embeddings to Adam
    at 20 times the learning rate: `optax.multi_transform` composes that. Other uses::

        optax.chain(
            scale_by_celo2(theta), optax.add_decayed_weights(1e-2), optax.scale_by_learning_rate(lr)
        )

    A scalar's direction is ±1; a matrix transposed before every step is treated as the transpose,
    except that a square one, whose axes have no longer and shorter, exchanges rows and columns.
    NaN in a gradient reaches the whole tensor.

    Args:
        theta: weights, see `celo2`. Differentiable.
        orthogonalise: apply `newton_schulz` to tensors of two axes or more. Static.
        norm_axes: trailing axes over which features and the direction are normalised; any further
            axes (of a convolution, of stacked layers) count as so many matrices. None: all axes.
            Static.

    Returns:
        A transformation whose `update` needs `params`. Accumulators are float32 at least; memory is
        four numbers per parameter, and seven below two axes.

    Raises:
        ValueError: if `norm_axes` is below 1; in `update`, if it is not given the parameters.
    """
    if norm_axes is not None and norm_axes < 1:
        raise ValueError(f"scale_by_celo2: norm_axes={norm_axes} is below 1; use 2, or None.")

    def init(params):
        return init_leaves(zero_moments, params)

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(
                "scale_by_celo2: update got no params; pass update(grads, state, params)."
            )

        def direction(grad, param, moments):
            num_axes = min(grad.ndim, norm_axes or grad.ndim)
            grad = clip_gradient(grad)
            moments = accumulate(moments, grad, second_decay=SECOND_DECAY)
            y = entry_outputs(
                theta, grad, param, moments,
                eps=EPS, norm_eps=NORM_EPS, num_axes=num_axes,
                num_outputs=1, full_below_two_axes=False,
            )[0]  # fmt: skip
            if orthogonalise and y.ndim >= 2:
                y = newton_schulz(y)
            return normalise(y[None], eps=NORM_EPS, num_axes=num_axes)[0], moments

        return map_leaves(direction, updates, params, state)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def celo2(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    *,
    hidden_size: int = 8,
    hidden_layers: int = 2,
    orthogonalise: bool = False,
    weight_decay: Scalar = 0.0,
    norm_axes: int | None = 2,
) -> LearnedOptimizer:
    """Celo2 as a complete optimizer, applied to every tensor.

    Meta-train it at a constant learning rate, use it with one that decays: steps have a fixed size,
    so that under a constant rate the loss stops falling at a level the rate sets.

    Args:
        learning_rate: RMS of a step, a number or an optax schedule. Traced.
        hidden_size: width of the hidden layers. Static.
        hidden_layers: their number. Static.
        orthogonalise: see `scale_by_celo2`. Static.
        weight_decay: decoupled, times the learning rate. Traced.
        norm_axes: see `scale_by_celo2`. Static.

    Returns:
        A learned optimizer with 347 weights, `{"linear_0": {"w": (30, h), "b": (h,)}, "linear_1":
        {"w": (h, h), ...}, "linear_2": {"w": (h, 3), ...}}`, features in the order above; of the
        three outputs only the first is used, the others keep published weights loadable.

    Raises:
        ValueError: if `hidden_size`, `hidden_layers` or `norm_axes` is below 1.
    """
    sizes = (NUM_FEATURES, *hidden_sizes("celo2", hidden_size, hidden_layers), 3)
    if norm_axes is not None and norm_axes < 1:
        raise ValueError(f"celo2: norm_axes={norm_axes} is below 1; use 2, or None.")

    def optimizer(theta, *, num_steps=None):
        del num_steps
        return optax.chain(
            scale_by_celo2(theta, orthogonalise=orthogonalise, norm_axes=norm_axes),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return checked_optimizer("celo2", lambda key: network_init(key, sizes), optimizer)


def newton_schulz(matrix: Float[Array, "... rows cols"]) -> Float[Array, "... rows cols"]:
    """Pushes the singular values of matrices towards 1, by five quintic iterations.

    With A = y yᵀ and y of unit Frobenius norm at first: y <- 3.4445 y + (2.0315 A² - 4.775 A) y.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    y = jnp.matrix_transpose(matrix) if tall else matrix
    y = y * jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=(-2, -1), keepdims=True) + 1e-16)
    for _ in range(5):
        gram = y @ jnp.matrix_transpose(y)
        y = 3.4445 * y + (2.0315 * gram @ gram - 4.775 * gram) @ y
    return jnp.matrix_transpose(y) if tall else y
