"""Adam whose denominator is a constant to meta-gradients: the optimizer of DiscoRL's agents.

    m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) stop(g)²
    update = −lr · clip(m̂ / (√v̂ + ε), ±c),    m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

The values are Adam's (Kingma and Ba 2015, arXiv:1412.6980). Its derivative by the gradient is that
of m alone, (1 − β₁) / (1 − β₁ᵗ) / (√v̂ + ε), which exists where a gradient is zero; it does not see
that a gradient twice as large is scaled down twice as much. Oh et al. 2025,
doi:10.1038/s41586-025-09761-x, in the released code.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Scalar, checked
from metaopt.data._check import above_zero


@checked
def disco_adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    max_update: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with a denominator that meta-gradients do not see, and bounded updates.

    Args:
        learning_rate: lr, a scalar or a schedule. Traced.
        b1: β₁. Traced.
        b2: β₂. Traced.
        eps: ε. Where the gradient was always zero, `lr / eps` is the scale of the derivative of an
            update. Traced.
        max_update: c, the largest entry of an update, before the learning rate. Traced.

    Returns:
        An optimizer whose moments are float32 at least, and updates have the dtypes of gradients.

    Raises:
        ValueError: if `eps` or `max_update` is not positive.
    """
    above_zero("disco_adam", eps=eps, max_update=max_update)

    def init(params):
        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
        )
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        count = optax.safe_increment(state.count)

        def first(m, g):
            return (b1 * m + (1 - b1) * g).astype(m.dtype)

        def second(v, g):
            return (b2 * v + (1 - b2) * jax.lax.stop_gradient(g).astype(v.dtype) ** 2).astype(
                v.dtype
            )

        def direction(m, v, g):
            steps = jnp.asarray(count, m.dtype)
            ratio = m / (1 - b1**steps) / (jnp.sqrt(v / (1 - b2**steps)) + eps)
            return jnp.clip(ratio, -max_update, max_update).astype(g.dtype)

        mu = jax.tree.map(first, state.mu, updates)
        nu = jax.lax.stop_gradient(jax.tree.map(second, state.nu, updates))
        updates = jax.tree.map(direction, mu, nu, updates)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.chain(
        optax.GradientTransformationExtraArgs(init, update),
        optax.scale_by_learning_rate(learning_rate),
    )
