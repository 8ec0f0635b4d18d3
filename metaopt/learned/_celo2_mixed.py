"""Celo2 as published: a learned, orthogonalised rule for matrices and Adam for everything else.

    matrices:   y <- NewtonSchulz(direction of the network),  y <- y / RMS(y)
                p <- p - lr · (y + weight_decay · p)
    the rest:   m <- b1 m + (1 - b1) g,    r <- b2 r + (1 - b2) g²
                p <- p - vector_mult · lr · (m / √(r + 1e-8) + vector_weight_decay · p)

The rest are biases, norms and, named by their paths, embeddings and the like. The ε is inside the
root, so that the rule has a derivative where gradients are zero, and by default the averages are
not corrected for their start at 0, as in meta-training. Celo2, 2026, arXiv:2602.19142; the rule for
matrices is `scale_by_celo2`, and `celo2` applies it, without orthogonalising, to every tensor.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._celo2 import celo2, scale_by_celo2
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import ema, init_leaves, map_leaves, zeros

EPS = 1e-8


class RawAdamMoments(NamedTuple):
    """Accumulators; in the state each field is a tree like the parameters."""

    first: Float[Array, "1 ..."]
    second: Float[Array, "1 ..."]


class RawAdamState(NamedTuple):
    """Steps taken, and the accumulators."""

    count: Int[Array, ""]
    moments: RawAdamMoments


@checked
def celo2_mixed(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    *,
    is_vector: Callable[[str, Array], bool] | None = None,
    vector_mult: Scalar = 20.0,
    weight_decay: Scalar = 0.0,
    vector_weight_decay: Scalar = 0.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    bias_correction: bool = False,
    orthogonalise: bool = True,
    hidden_size: int = 8,
    hidden_layers: int = 2,
    norm_axes: int | None = 2,
) -> LearnedOptimizer:
    """The complete optimizer; a warm-up or a decay is a schedule, given as the learning rate.

    Embeddings too go to Adam with, say::

        celo2_mixed(schedule, is_vector=lambda path, p: p.ndim < 2 or "embed" in path)

    Args:
        learning_rate: RMS of a matrix's step, a number or an optax schedule. Traced.
        is_vector: `(path, param) -> bool`, with a path such as `"layer/kernel"`: what Adam trains.
            None: tensors below two axes. Static.
        vector_mult: learning rate of Adam over that of the matrices. Traced.
        weight_decay: of matrices, decoupled, times their learning rate. Traced.
        vector_weight_decay: of the rest, times the learning rate of Adam. Traced.
        b1: decay of Adam's first moment. Traced.
        b2: decay of Adam's second moment. Traced.
        bias_correction: divide Adam's moments by `1 - b**t`. Static.
        orthogonalise: of matrices; see `scale_by_celo2`. Static.
        hidden_size: width of the network's hidden layers. Static.
        hidden_layers: their number. Static.
        norm_axes: see `scale_by_celo2`. Static.

    Returns:
        A learned optimizer whose `theta` is that of `celo2`. Accumulators are float32 at least;
        memory is four numbers per entry of a matrix and two per entry of the rest.

    Raises:
        ValueError: as `celo2`; in `update`, if it is not given the parameters.
    """
    init = celo2(hidden_size=hidden_size, hidden_layers=hidden_layers, norm_axes=norm_axes).init
    belongs = is_vector or (lambda path, param: len(param.shape) < 2)

    def labels(params):
        def label(path, param):
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            return "vector" if belongs(path, param) else "matrix"

        return jax.tree_util.tree_map_with_path(label, params)

    def optimizer(theta, *, num_steps=None):
        del num_steps
        direction = scale_by_celo2(theta, orthogonalise=orthogonalise, norm_axes=norm_axes)
        adam = _scale_by_raw_adam(b1, b2, bias_correction)
        rules: dict[Hashable, optax.GradientTransformation] = {
            "matrix": _complete(direction, weight_decay, learning_rate),
            "vector": _complete(adam, vector_weight_decay, _times(vector_mult, learning_rate)),
        }
        return optax.partition(rules, labels)

    return checked_optimizer("celo2_mixed", init, optimizer)


def _complete(direction, weight_decay, learning_rate):
    return optax.chain(
        direction,
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _times(factor: Scalar, learning_rate: optax.ScalarOrSchedule) -> optax.ScalarOrSchedule:
    if callable(learning_rate):
        return lambda count: factor * learning_rate(count)
    return factor * learning_rate


def _scale_by_raw_adam(b1, b2, bias_correction) -> optax.GradientTransformationExtraArgs:
    """Adam's direction with ε inside the root; `optax.scale_by_adam` always corrects the bias."""

    def init(params):
        return RawAdamState(jnp.zeros((), jnp.int32), init_leaves(_zero_moments, params))

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(
                "celo2_mixed: update got no params; pass update(grads, state, params)."
            )
        count = jnp.asarray(optax.safe_increment(state.count))

        def step(grad, param, moments):
            del param
            moments = RawAdamMoments(
                ema(moments.first, grad, (b1,)), ema(moments.second, jnp.square(grad), (b2,))
            )
            first, second = moments.first[0], moments.second[0]
            if bias_correction:
                first = first / (1 - jnp.asarray(b1, grad.dtype) ** count)
                second = second / (1 - jnp.asarray(b2, grad.dtype) ** count)
            return first * jax.lax.rsqrt(second + EPS), moments

        updates, moments = map_leaves(step, updates, params, state.moments)
        return updates, RawAdamState(count, moments)

    return optax.GradientTransformationExtraArgs(init, update)


def _zero_moments(param) -> RawAdamMoments:
    return RawAdamMoments(zeros(param, 1), zeros(param, 1))
