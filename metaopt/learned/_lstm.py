"""The coordinate-wise LSTM (L2L).

One small recurrent network, the same for every entry x of every tensor, from its gradient g:

    p  = (log(|g| + 2⁻²³)/5 clipped below at -1,  e⁵ g clipped to ±1)       "log_sign"
    p  = (g,)                                                               "raw"
    h¹, c¹ <- LSTM₁(p, h¹, c¹),    h², c² <- LSTM₂(h¹, h², c²)
    x  <- x + output_scale · (wᵀ h² + b)

Where |g| >= e⁻⁵ the two numbers of "log_sign" are log|g|/5 and the sign of g; below, -1 and e⁵ g.
Andrychowicz et al. 2016, arXiv:1606.04474, §2.1 and App. A. The paper trains it by truncated
backpropagation without second derivatives: `unroll(gradient="first_order")` and the argument of
that name of `estimators.truncated_backprop`.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._recurrent import LSTMState, dense, dense_init, lstm_init
from metaopt.learned._recurrent import lstm as cell

Preprocess = Literal["log_sign", "raw"]
LOG_RANGE = 5.0
EPS = 2.0**-23


class CoordinateLSTMState(NamedTuple):
    """What the coordinates remember.

    Attributes:
        carry: for each layer an `LSTMState` whose two fields are trees like the parameters, each
            leaf `[*shape, hidden]`.
    """

    carry: tuple[LSTMState, ...]


@checked
def lstm(
    *,
    hidden_size: int = 20,
    num_layers: int = 2,
    preprocess: Preprocess = "log_sign",
    output_scale: Scalar = 0.01,
) -> LearnedOptimizer:
    """Stacked LSTM layers that see nothing but one coordinate's gradients: 5141 weights.

    All coordinates of all tensors go through the network in one call. It is known not to carry over
    to other activations or to much longer trainings than those it was meta-trained on; the
    optimizers that came after it are answers to that.

    Args:
        hidden_size: width of each layer. Static.
        num_layers: their number. Static.
        preprocess: what the network is fed, see the module; the paper uses "raw" with
            `output_scale=1` on quadratics and "log_sign" on neural networks. Static.
        output_scale: multiplies the output. Traced.

    Returns:
        A learned optimizer. `theta` is `{"lstm_0": {"w": (inputs + h, 4h), "b": (4h,)}, ...,
        "linear": {"w": (h, 1), "b": (1,)}}`. Memory: 80 numbers per parameter, float32 at least.

    Raises:
        ValueError: if `hidden_size` or `num_layers` is below 1, or `preprocess` is unknown.
    """
    for name, count in (("hidden_size", hidden_size), ("num_layers", num_layers)):
        if count < 1:
            raise ValueError(f"lstm: {name}={count} is below 1; use a positive number.")
    if preprocess not in get_args(Preprocess):
        raise ValueError(
            f"lstm: preprocess={preprocess!r} is unknown; choose from {get_args(Preprocess)}."
        )
    sizes = (2 if preprocess == "log_sign" else 1, *[hidden_size] * num_layers)

    def init_theta(key):
        keys = jax.random.split(key, num_layers + 1)
        theta = {f"lstm_{i}": lstm_init(keys[i], sizes[i], sizes[i + 1]) for i in range(num_layers)}
        return theta | {"linear": dense_init(keys[num_layers], hidden_size, 1)}

    def optimizer(theta, *, num_steps=None):
        del num_steps

        def init(params):
            dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))

            def zeros():
                # Split over devices as its parameter is.
                return jax.tree.map(
                    lambda p: jnp.broadcast_to(
                        jnp.zeros_like(p, dtype)[..., None], (*p.shape, hidden_size)
                    ),
                    params,
                )

            return CoordinateLSTMState(
                tuple(LSTMState(zeros(), zeros()) for _ in range(num_layers))
            )

        def update(updates, state, params=None, **extra):
            del params, extra
            if not jax.tree.leaves(updates):
                return updates, state
            own = jax.tree.map(lambda x: x.astype(_dtype(state)), theta)
            outputs = _features(_join(updates, 1).astype(_dtype(state)), preprocess)
            carries = []
            for i, carry in enumerate(state.carry):
                joined = LSTMState(*(_join(field, hidden_size) for field in carry))
                outputs, joined = cell(own[f"lstm_{i}"], joined, outputs)
                carries.append(LSTMState(*(_split(field, updates) for field in joined)))
            steps = _split(output_scale * dense(own["linear"], outputs), updates)
            steps = jax.tree.map(lambda s, g: s[..., 0].astype(g.dtype), steps, updates)
            return steps, CoordinateLSTMState(tuple(carries))

        return optax.GradientTransformationExtraArgs(init, update)

    return checked_optimizer("lstm", init_theta, optimizer)


def _dtype(state: CoordinateLSTMState):
    return jax.tree.leaves(state)[0].dtype


def _features(grads: Float[Array, "coordinates 1"], preprocess: Preprocess) -> Array:
    if preprocess == "raw":
        return grads
    size = jnp.maximum(jnp.log(jnp.abs(grads) + EPS) / LOG_RANGE, -1)
    return jnp.concatenate([size, jnp.clip(math.exp(LOG_RANGE) * grads, -1, 1)], axis=-1)


def _join(tree: PyTree, width: int) -> Float[Array, "coordinates width"]:
    """All coordinates of a tree whose leaves are `[*shape, width]`, or `[*shape]` for one."""
    # In the tree's widest dtype: leaves of less precision are exact in it.
    return jnp.concatenate([x.reshape(-1, width) for x in jax.tree.leaves(tree)])


def _split(coordinates: Float[Array, "coordinates width"], like: PyTree) -> PyTree:
    """The inverse of `_join`: leaves `[*shape, width]` for the shapes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    ends, width = [], coordinates.shape[1]
    for leaf in leaves:
        ends.append(leaf.size + (ends[-1] if ends else 0))
    parts = jnp.split(coordinates, ends[:-1])
    return treedef.unflatten(
        [part.reshape(*leaf.shape, width) for part, leaf in zip(parts, leaves, strict=True)]
    )
