"""Gradient norm aware minimisation (GAM): first-order flatness.

    minimise  L(w) + α R(w),    R(w) = ρ · max { |∇L(w')| : |w' − w| ≤ ρ }
    f = H(w) g / |g|,    g = ∇L(w)                       the gradient of |∇L|
    w⁺ = w + ρ f / |f|,    g⁺ = ∇L(w⁺)                   the worst point
    direction = g + α ρ H(w⁺) g⁺ / |g⁺|

Zhang et al. 2023 (CVPR), arXiv:2303.03108. The authors train with a form that takes
four gradients and no Hessian, here `accelerated_gam`, after their published program:

    g₁ = ∇L(w + ρ' g/|g|),    w₂ = w + ρ (g₁ − g)/|g₁ − g|
    g₂ = ∇L(w₂),              g₃ = ∇L(w₂ + ρ' g₂/|g₂|)
    a = β₁ g₁ + β₃ g₃,        p = g + |β₂| g₂
    direction = a − γ (p − its projection onto a)

Its settings mean other things than α does, and its direction is about β₁ + β₃ times as long as g.
"""

import jax
import optax

from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import (
    check_sign,
    inner,
    move,
    product_with_hessian,
    require_grad_fn,
    unit,
)
from metaopt.optimizers._numerics import widen


@checked
def gam(
    *, rho: Scalar = 0.2, alpha: Scalar = 1.0, eps: Scalar = 1e-12
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of the first-order flatness to gradients; chain it before any optimizer.

    Its `update` needs `grad_fn(params, i)`, gradients on the batch of the step, and takes Hessian-
    vector products from `hvp_fn(params, v)` if it is given one, else as derivatives of `grad_fn`
    along v. A step costs one gradient and two such products. The gradients that it is given may be
    those of another loss, such as `sam_gradient`'s; g is then taken to be that.

    Args:
        rho: radius ρ, in units of the parameters. Traced.
        alpha: strength α of the penalty. Traced.
        eps: added to the norms. Traced.

    Returns:
        A transformation without state whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if a setting is negative; from `update`, without `grad_fn` or parameters.
    """
    check_sign("gam", strict=False, rho=rho, alpha=alpha, eps=eps)

    def update(updates, state, params=None, *, grad_fn=None, hvp_fn=None, **extra_args):
        del extra_args
        grad_fn = require_grad_fn("gam", grad_fn, params)
        product = hvp_fn or product_with_hessian(grad_fn)
        f = product(params, unit(updates, eps))
        worst = move(params, rho, unit(f, eps))
        h = product(worst, unit(grad_fn(worst, 0), eps))
        new = jax.tree.map(
            lambda g, x: (widen(g) + alpha * rho * widen(x)).astype(g.dtype), updates, h
        )
        return new, state

    return optax.GradientTransformationExtraArgs(_no_state, update)


@checked
def accelerated_gam(
    *,
    rho: Scalar = 0.2,
    inner_rho: Scalar = 0.02,
    b1: Scalar = 1.0,
    b2: Scalar = -1.0,
    b3: Scalar = 1.0,
    gamma: Scalar = 0.03,
    eps: Scalar = 1e-12,
) -> optax.GradientTransformationExtraArgs:
    """GAM by four gradients, without a Hessian; chain it before any optimizer.

    Its `update` needs `grad_fn(params, i)`, gradients on the batch of the step; it is called three
    times, i = 0, 1, 2. The direction is longer than the gradient: with these settings twice as
    long where the loss is linear.

    Args:
        rho: radius ρ of the ascent on the norm of the gradient. Traced.
        inner_rho: radius ρ' of the ascents on the loss; at least 0.01 in float32, since gradients
            at its two ends are subtracted. Traced.
        b1: β₁, weight of the gradient uphill from the parameters. Traced.
        b2: β₂, of which the absolute value is the weight of g₂ beside g. Traced.
        b3: β₃, weight of the gradient uphill from the worst point. Traced.
        gamma: γ, how much is subtracted of what points elsewhere. Traced.
        eps: added to the norms. Traced.

    Returns:
        A transformation without state whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `rho` or `eps` is negative or `inner_rho` not positive; from `update`,
            without `grad_fn` or parameters.
    """
    check_sign("accelerated_gam", strict=False, rho=rho, eps=eps)
    check_sign("accelerated_gam", strict=True, inner_rho=inner_rho)

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        del extra_args
        gradient_at = require_grad_fn("accelerated_gam", grad_fn, params)

        def gradient(at, index):
            return widen(gradient_at(at, index))

        g0 = widen(updates)
        g1 = gradient(move(params, inner_rho, unit(g0, eps)), 0)
        rise = jax.tree.map(lambda x, y: x - y, g1, g0)
        worst = move(params, rho, unit(rise, eps))
        g2 = gradient(worst, 1)
        g3 = gradient(move(worst, inner_rho, unit(g2, eps)), 2)
        uphill = jax.tree.map(lambda x, y: b1 * x + b3 * y, g1, g3)
        pull = jax.tree.map(lambda x, y: x + abs(b2) * y, g0, g2)
        along = unit(uphill, eps)
        length = inner(pull, along)
        new = jax.tree.map(
            lambda u, a, p, e: (a - gamma * (p - length.astype(p.dtype) * e)).astype(u.dtype),
            updates,
            uphill,
            pull,
            along,
        )
        return new, state

    return optax.GradientTransformationExtraArgs(_no_state, update)


def _no_state(params):
    del params
    return optax.EmptyState()
