"""A per-parameter multilayer perceptron (MLP).

For every entry of a tensor, from its gradient g, its value p and six momenta m:

    x      = [n(g), n(p), n(m_1), ..., n(m_6), tanh(t/τ_1 - 1), ..., tanh(t/τ_11 - 1)]
    (a, s) = network(x),    p <- p - step_mult · a · exp(exp_mult · s)

with n(x) = x / √(1e-5 + mean(x²)) over the tensor, and t the steps taken before this one.
Metz et al. 2019, arXiv:1810.10180, §3 ("MLPLOpt" of Metz et al. 2022, arXiv:2203.11860).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import ema, map_leaves, tanh_clock, zeros
from metaopt.learned._network import (
    after_first,
    bias,
    hidden_sizes,
    mix,
    mix_normalised,
    network_init,
)

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
NUM_PLANES = 2 + len(DECAYS)
NUM_FEATURES = NUM_PLANES + 11


class MLPState(NamedTuple):
    """Steps taken and, for every tensor, six momenta `[6, *shape]`."""

    count: Int[Array, ""]
    momenta: PyTree


@checked
def mlp(
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: Scalar = 1e-3,
    exp_mult: Scalar = 1e-3,
) -> LearnedOptimizer:
    """A network of 1762 weights, shared by all parameters, that maps features to steps.

    It sees neither the loss nor the planned number of steps, and gradients are not clipped.
    Memory: six numbers per parameter.

    Args:
        hidden_size: width of the hidden layers. Static.
        hidden_layers: their number. Static.
        step_mult: multiplies steps. Traced.
        exp_mult: multiplies the second output before the exponential. Traced.

    Returns:
        A learned optimizer. `theta` is `{"linear_0": {"w": (19, h), "b": (h,)}, "linear_1":
        {"w": (h, h), ...}, "linear_2": {"w": (h, 2), ...}}`; features in the order above.

    Raises:
        ValueError: if `hidden_size` or `hidden_layers` is below 1; in `update`, if it is not
            given the parameters.
    """
    sizes = (NUM_FEATURES, *hidden_sizes("mlp", hidden_size, hidden_layers), 2)

    def optimizer(theta, *, num_steps=None):
        del num_steps

        def init(params):
            momenta = jax.tree.map(lambda p: zeros(p, len(DECAYS)), params)
            return MLPState(jnp.zeros((), jnp.int32), momenta)

        def update(updates, state, params=None, **extra):
            del extra
            if params is None:
                raise ValueError("mlp: update got no params; pass update(grads, state, params).")

            def step(grad, param, momenta):
                momenta = ema(momenta, grad, DECAYS)
                direction, log_scale = _outputs(theta, grad, param, momenta, state.count)
                return -step_mult * direction * jnp.exp(exp_mult * log_scale), momenta

            updates, momenta = map_leaves(step, updates, params, state.momenta)
            count = jnp.asarray(optax.safe_increment(state.count))
            return updates, MLPState(count, momenta)

        return optax.GradientTransformationExtraArgs(init, update)

    return checked_optimizer("mlp", lambda key: network_init(key, sizes), optimizer)


def _outputs(theta, grad, param, momenta, count) -> Array:
    theta = jax.tree.map(lambda x: x.astype(grad.dtype), theta)
    planes = jnp.concatenate([grad[None], param[None], momenta])
    weights, offset = theta["linear_0"]["w"], theta["linear_0"]["b"]
    # The clock is the same for all entries, so it only shifts the bias.
    offset = offset + mix(weights[NUM_PLANES:], tanh_clock(count, grad.dtype))
    hidden = mix_normalised(weights[:NUM_PLANES], planes, eps=1e-5, num_axes=grad.ndim)
    return after_first(theta, hidden + bias(offset, hidden), num_outputs=2)
