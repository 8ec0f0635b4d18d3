"""Adam whose hyperparameters are moved by a recurrent network, one sequence per tensor (NNAdam).

For every tensor, from its gradient g clipped to ±1000, with the tensor's present lr, b1, b2, eps:

    m <- b1 m + (1 - b1) g,    r <- b2 r + (1 - b2) g²
    p <- p - lr (1 + eps) m / (eps + √(r + 1e-10))
    u  = W LSTM(features of g, m, r, p, the hyperparameters) + b
    (lr, b1, b2, eps) <- (lr, b1, b2, eps) + output_scale · u      as transformed numbers,

0.1 ln lr, 0.1 ln(1 - b1), 0.1 ln(1 - b2) and 0.1 ln eps, kept in the ranges of lr in [1e-8, 1e3],
b in [0, 1 - e⁻¹⁰], eps in [1e-11, 1e4]. The factor 1 + eps keeps the step as large as SGD's where
eps outweighs the root. No average is corrected for its bias.

The 19 features, with L(x) = ½ clip(ln(1e-8 + |x|), ±5) and means and variances over the tensor:
b1, b2, eps (transformed, clipped to ±5, divided by 5); whether it is a vector, a scalar (±1); lr,
likewise; L and sign of mean g; L(mean |g|); L and sign of mean m, mean p, mean r; L(var g),
L(var m), L(var p), L(var r). `p` is the one before the step.

Metz et al. 2022, arXiv:2203.11860 ("NNAdam"), after Metz et al. 2020, arXiv:2009.11243.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import clip_gradient, init_leaves, map_leaves, working_dtype
from metaopt.learned._recurrent import LSTMState, dense, lstm, lstm_init

NUM_FEATURES = 19
# Ranges of lr, b1, b2 and eps as transformed numbers.
LOWEST = (0.1 * math.log(1e-8), -1.0, -1.0, 0.1 * math.log(1e-11))
HIGHEST = (0.1 * math.log(1e3), 0.0, 0.0, 0.1 * math.log(1e4))


class NNAdamMoments(NamedTuple):
    """Adam's averages; in the state each field is a tree like the parameters."""

    first: Float[Array, "..."]
    second: Float[Array, "..."]


class NNAdamState(NamedTuple):
    """What the optimizer carries; tensors are in the order of the tree's leaves.

    Attributes:
        moments: averages of gradients and of their squares.
        controls: transformed lr, b1, b2, eps of every tensor.
        carry: the network's memory of every tensor.
    """

    moments: NNAdamMoments
    controls: Float[Array, "tensors 4"]
    carry: LSTMState


@checked
def nn_adam(
    *,
    hidden_size: int = 32,
    learning_rate: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    output_scale: Scalar = 0.01,
) -> LearnedOptimizer:
    """Adam with learned initial hyperparameters, which an LSTM then changes at every step.

    Fresh from `init` the network's head is 0, so that this is Adam without bias correction. It sees
    neither the loss nor the planned number of steps. Memory: two numbers per parameter.

    Args:
        hidden_size: of the LSTM. Static.
        learning_rate: its initial value in a fresh theta, as those of the next three.
        b1: decay of the first average, in [0, 1).
        b2: decay of the second average, in [0, 1).
        eps: what is added to the root of the second average, positive.
        output_scale: multiplies the changes of the transformed hyperparameters. Traced.

    Returns:
        A learned optimizer. `theta` is `{"controls": (4,), "state": {"hidden": (h,), "cell": (h,)},
        "lstm": {"w": (19 + h, 4h), "b": (4h,)}, "head": {"w": (h, 4), "b": (4,)}}`, 6856 numbers;
        "state" is where the memory of every tensor starts.

    Raises:
        ValueError: if `hidden_size` is below 1, `learning_rate` or `eps` is not positive, or a
            decay is outside [0, 1); in `update`, if it is not given the parameters.
    """
    start = _initial_controls(learning_rate, b1, b2, eps)
    if hidden_size < 1:
        raise ValueError(f"nn_adam: hidden_size={hidden_size} is below 1; use a positive width.")

    def init_theta(key):
        return {
            "controls": jnp.asarray(start, float),
            "state": {"hidden": jnp.zeros(hidden_size), "cell": jnp.zeros(hidden_size)},
            "lstm": lstm_init(key, NUM_FEATURES, hidden_size),
            "head": {"w": jnp.zeros((hidden_size, 4)), "b": jnp.zeros(4)},
        }

    def optimizer(theta, *, num_steps=None):
        del num_steps

        def init(params):
            leaves = jax.tree.leaves(params)
            dtype = jnp.result_type(jnp.float32, *leaves)
            moments = init_leaves(
                lambda p: NNAdamMoments(
                    *(jnp.zeros_like(p, working_dtype(p), p.shape or (1,)) for _ in range(2))
                ),
                params,
            )
            repeated = jax.tree.map(
                lambda x: jnp.tile(x.astype(dtype)[None], (len(leaves), 1)),
                (theta["controls"], LSTMState(**theta["state"])),
            )
            return NNAdamState(moments, *repeated)

        def update(updates, state, params=None, **extra):
            del extra
            if params is None:
                raise ValueError(
                    "nn_adam: update got no params; pass update(grads, state, params)."
                )
            if not jax.tree.leaves(updates):
                return updates, state
            dtype = state.controls.dtype
            controls, ranks = iter(state.controls), iter(map(jnp.ndim, jax.tree.leaves(params)))
            features = []

            def step(grad, param, moments):
                own = next(controls)
                grad = clip_gradient(grad)
                updates, moments = _adam(own, moments, grad)
                seen = _tensor_features(grad, param, moments, next(ranks))
                # The hyperparameters' places among the features are those of the original.
                lr, *others = 0.2 * jnp.clip(own, -5, 5)
                features.append(jnp.stack([*others, *seen[:2], lr, *seen[2:]]).astype(dtype))
                return updates, moments

            updates, moments = map_leaves(step, updates, params, state.moments)
            own = jax.tree.map(lambda x: x.astype(dtype), theta)
            outputs, carry = lstm(own["lstm"], state.carry, jnp.stack(features))
            moved = state.controls + output_scale * dense(own["head"], outputs)
            limits = (jnp.asarray(x, dtype)[None] for x in (LOWEST, HIGHEST))
            return updates, NNAdamState(moments, jnp.clip(moved, *limits), carry)

        return optax.GradientTransformationExtraArgs(init, update)

    return checked_optimizer("nn_adam", init_theta, optimizer)


def _initial_controls(learning_rate, b1, b2, eps) -> list[float]:
    for name, value in (("learning_rate", learning_rate), ("eps", eps)):
        if not value > 0:
            raise ValueError(f"nn_adam: {name}={value} is not positive; use a value above 0.")
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"nn_adam: {name}={value} is outside [0, 1); use a decay below 1.")
    return [0.1 * math.log(x) for x in (learning_rate, 1 - b1, 1 - b2, eps)]


def _adam(controls, moments: NNAdamMoments, grad: Array) -> tuple[Array, NNAdamMoments]:
    lr, slow_1, slow_2, eps = jnp.exp(
        10 * jnp.clip(controls, *(jnp.asarray(x, controls.dtype) for x in (LOWEST, HIGHEST)))
    ).astype(grad.dtype)
    b1, b2 = 1 - slow_1, 1 - slow_2
    # Not slow_1 and slow_2: rounded like the original, whose trajectories a test compares with.
    m = b1 * moments.first + (1 - b1) * grad
    r = b2 * moments.second + (1 - b2) * jnp.square(grad)
    return -lr * (1 + eps) / (eps + jnp.sqrt(r + 1e-10)) * m, NNAdamMoments(m, r)


def _tensor_features(grad, param, moments: NNAdamMoments, rank: int) -> list[Array]:
    """What the network sees of one tensor besides its hyperparameters."""
    planes = (grad, moments.first, param, moments.second)
    means = [jnp.mean(x) for x in planes]
    variances = [jnp.mean(jnp.square(x - mean)) for x, mean in zip(planes, means, strict=True)]
    signed = [f(mean) for mean in means for f in (_log_size, jnp.sign)]
    flags = [jnp.asarray(1.0 if rank == n else -1.0, grad.dtype) for n in (1, 0)]
    sizes = [_log_size(x) for x in variances]
    return [*flags, *signed[:2], _log_size(jnp.mean(jnp.abs(grad))), *signed[2:], *sizes]


def _log_size(x: PyTree) -> Array:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5, 5)
