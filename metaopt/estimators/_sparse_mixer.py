"""SparseMixer: gradients through a router that sends each input to one expert, drawn.

    p = softmax(logits of experts not far below the best),    D ~ p
    weight m = p_D,  and p_D/2 by the toss of a coin unless D is the best one
    ∂m/∂p_D := 2

The output is m F_D for the output F_D of the expert. The gradient of E q(p_D F_D) is the sum over
experts of ∂p_D (q(p_D F_D) − q(0)), how often they are drawn, and of p_D ∂q(p_D F_D), what they do
then. Usual routers leave out the first sum, as it needs all experts; with the midpoint rule it is
∂p_D q'(p_D F_D / 2) F_D, which the runs at half the weight see. For the best expert Euler's rule
takes its place, so that training sees the weight of inference. Liu et al. 2023, arXiv:2310.00811;
the first published rule, not the one with Heun's. The program scales outputs by a learned vector.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metaopt.core import Scalar, checked


class SparseGate(NamedTuple):
    """Where inputs go.

    Attributes:
        expert: D, one for each input.
        weight: m, to multiply the output of the expert with.
        probs: p, for a loss that balances experts.
    """

    expert: Int[Array, "..."]
    weight: Float[Array, "..."]
    probs: Float[Array, "... experts"]


@checked
def sparsemixer_gate(
    logits: Float[Array, "... experts"], key: PRNGKeyArray | None, *, jitter: Scalar = 0.1
) -> SparseGate:
    """Draws an expert for each input, with a weight whose gradient sees how often it is drawn.

    Args:
        logits: of experts, on the last axis.
        key: of the draw; None for inference: the best expert, with its probability as weight and
            the plain derivative of that.
        jitter: r; experts whose logit l is more than 2 r max(|l|, max l) below the largest one are
            never drawn; infinite for none. Not differentiated. Traced.

    Returns:
        Experts, their weights in the dtype of the logits, and probabilities, 0 where never drawn.
    """
    best = jnp.argmax(logits, axis=-1)
    values = jax.lax.stop_gradient(logits)
    top = jnp.max(values, axis=-1, keepdims=True)
    far = top - values > 2 * jitter * jnp.maximum(jnp.abs(values), top)
    near = jnp.where(far, -jnp.inf, logits)
    probs = jax.nn.softmax(near, axis=-1)

    def weight_of(expert):
        return jnp.take_along_axis(probs, expert[..., None], axis=-1)[..., 0]

    if key is None:
        return SparseGate(best, weight_of(best), probs)
    key_expert, key_coin = jax.random.split(key)
    expert = jax.random.categorical(key_expert, jax.lax.stop_gradient(near), axis=-1)
    p = weight_of(expert)
    whole = (expert == best) | jax.random.bernoulli(key_coin, 0.5, expert.shape)
    value = jax.lax.stop_gradient(jnp.where(whole, p, p / 2))
    return SparseGate(expert, value + 2 * (p - jax.lax.stop_gradient(p)), probs)
