"""Learned thresholds for sparse weights, with gradients that pruned weights keep for a while.

    w̃ = sign(w) · relu(|w| − σ(T))
    ∂w̃/∂w := 1 where |w| > σ(T), else α            ∂w̃/∂T = −sign(w) σ'(T) · ∂w̃/∂w
    αᵢ = α₀ max( (1 + cos(π i/N))/2,  1 − σ(12 i/N − 6) )

AutoSparse: Kundu et al. 2023, arXiv:2304.06941; after a published program. With α = 0 from the
start pruned weights never come back, with α = 1 nothing becomes sparse. T starts at about −5, and
how far it rises depends on its weight decay; its gradient is a sum over weights, so it may need a
learning rate of its own.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from metaopt.core import Scalar, checked


@checked
def soft_threshold(
    weights: Float[Array, "..."], threshold: Float[Array, "..."], *, alpha: Scalar = 0.5
) -> Float[Array, "..."]:
    """Weights without what is smaller than a learned threshold.

    Args:
        weights: dense weights w.
        threshold: T, before the sigmoid: a scalar, or an array of the same number of axes that
            broadcasts to the weights, such as `[1, fan_out]`.
        alpha: α, what pruned weights keep of their gradient; not differentiated. Traced.

    Returns:
        w̃, in the dtype of the weights.
    """
    sign = jax.lax.stop_gradient(jnp.sign(weights))
    shrunk = weights - sign * jax.nn.sigmoid(threshold).astype(weights.dtype)
    kept = jax.lax.stop_gradient(shrunk * sign > 0)
    value = jax.lax.stop_gradient(jnp.where(kept, shrunk, 0))
    factor = jnp.where(kept, 1, jax.lax.stop_gradient(jnp.asarray(alpha, weights.dtype)))
    return value + (factor * shrunk - jax.lax.stop_gradient(factor * shrunk))


@checked
def annealed_alpha(num_steps: int, *, initial: Scalar = 0.5) -> optax.Schedule:
    """How much of their gradient pruned weights keep: from α₀ to almost nothing.

    Args:
        num_steps: N. Static.
        initial: α₀, 0.5 to 0.9. Traced.

    Returns:
        A schedule of steps; from step N on, α₀ (1 − σ(6)), about α₀/400.

    Raises:
        ValueError: if `num_steps` is below 1 or `initial` outside [0, 1].
    """
    if num_steps < 1:
        raise ValueError(f"annealed_alpha: num_steps must be at least 1, got {num_steps}.")
    if not isinstance(initial, jax.core.Tracer) and not np.all((initial >= 0) & (initial <= 1)):
        raise ValueError(f"annealed_alpha: initial must be in [0, 1], got {initial}.")

    def schedule(count):
        done = jnp.clip(count / num_steps, 0, 1)
        cosine = (1 + jnp.cos(jnp.pi * done)) / 2
        return initial * jnp.maximum(cosine, 1 - jax.nn.sigmoid(12 * done - 6))

    return schedule
