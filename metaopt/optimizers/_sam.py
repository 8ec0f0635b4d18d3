"""Sharpness-aware minimisation (SAM): the gradient at the worst point nearby.

    g = ∇L(w),    e = ρ g / |g|,    direction = ∇L(w + e)
    adaptive:     e = ρ w² g / | |w| g |        elementwise, norms over all parameters

Foret et al. 2021, arXiv:2010.01412; adaptive form Kwon et al. 2021, arXiv:2102.11600, with the
elementwise operator. The optimizer itself is `optax.contrib.sam`; this is its gradient, for
whatever takes a gradient function, with a norm whose derivative is finite at zero and without a
second state. Both gradients are of the same batch.
"""

from collections.abc import Callable

import jax

from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import check_sign, move, unit
from metaopt.optimizers._numerics import widen


@checked
def sam_gradient(
    grad_fn: Callable,
    *,
    rho: Scalar = 0.05,
    adaptive: bool = False,
    second_order: bool = False,
    eps: Scalar = 1e-12,
) -> Callable:
    """Makes a gradient function that looks at the worst point within ρ.

    Feed its gradients to any optimizer, with the parameters that were not moved. Map it over the
    shards of a batch and average afterwards, and every shard has its own worst point
    (m-sharpness); average the gradient inside `grad_fn`, and they share one. Clip and decay weights
    outside, and update running statistics in a call of your own at the parameters themselves.

    Args:
        grad_fn: `(params, *args) -> gradients`, such as `jax.grad(loss)`.
        rho: radius ρ, in units of the parameters; about ten times larger if `adaptive`. Traced.
        adaptive: whether distances are relative to the parameters. Static.
        second_order: whether derivatives of the result pass through the direction of e. They always
            pass through ρ. Static.
        eps: added to the norm. Traced.

    Returns:
        `(params, *args) -> gradients` in the dtypes of those of `grad_fn`.

    Raises:
        ValueError: if `rho` or `eps` is negative.
    """
    check_sign("sam_gradient", strict=False, rho=rho, eps=eps)

    def gradient(params, *args, **kwargs):
        g = widen(grad_fn(params, *args, **kwargs))
        if adaptive:
            size = jax.tree.map(lambda p: abs(widen(p)), params)
            direction = unit(jax.tree.map(lambda s, x: s * x, size, g), eps)
            direction = jax.tree.map(lambda s, x: s * x, size, direction)
        else:
            direction = unit(g, eps)
        if not second_order:
            direction = jax.lax.stop_gradient(direction)
        return grad_fn(move(params, rho, direction), *args, **kwargs)

    return gradient
