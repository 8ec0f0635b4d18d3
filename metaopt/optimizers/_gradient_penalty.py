"""Gradient regularisation: the gradient of L + γ/2 |∇L|², by finite differences.

    R = ½ |∇L|²,    ∇R = H g,    g = ∇L(w)
    forward   H g ≈ (∇L(w + ε g) − g) / ε
    backward  H g ≈ (g − ∇L(w − ε g)) / ε
    central   H g ≈ (∇L(w + ε g) − ∇L(w − ε g)) / 2ε
    exact     H g, the derivative of the gradient along g
    direction = g + γ · ∇R

Karakida et al. 2023 (ICML), arXiv:2210.02720, where a *large* forward step finds flatter minima
than the exact penalty does: ε is a setting of its own, not an error to be made small. The step ε g
is not normalised, so its length shrinks with the gradient. With γ = ε the forward direction is
∇L(w + ε g), unnormalised sharpness-aware minimisation; with γ = ε = ρ/|g| it is `sam_gradient`.
"""

from typing import Literal

import jax
import optax

from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import (
    check_sign,
    move,
    product_with_hessian,
    require_grad_fn,
)
from metaopt.optimizers._numerics import widen

Difference = Literal["forward", "backward", "central", "exact"]


@checked
def gradient_penalty(
    *, kind: Difference = "forward", gamma: Scalar = 0.01, eps: Scalar = 0.1
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of γ/2 |∇L|² to gradients; chain it before any optimizer.

    Its `update` needs `grad_fn(params, i)`, gradients on the batch of the step, where i = 0, 1
    counts the calls. What it is given as gradients must be that of the loss alone: clip and decay
    weights after it. In float32 the difference has an error of about 1e-7 |g| / ε: keep ε ≥ 1e-3.

    Args:
        kind: "forward" or "backward" (one more gradient), "central" (two) or "exact" (one
            Hessian-vector product, by `hvp_fn(params, v)` if `update` is given one). Static.
        gamma: strength γ of the penalty. Traced.
        eps: step ε, in units of parameters per gradient; "exact" ignores it. Traced.

    Returns:
        A transformation without state whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `gamma` is negative or `eps` not positive; from `update`, without `grad_fn`
            or parameters.
    """
    check_sign("gradient_penalty", strict=False, gamma=gamma)
    check_sign("gradient_penalty", strict=True, eps=eps)

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None, *, grad_fn=None, hvp_fn=None, **extra_args):
        del extra_args
        g = widen(updates)
        if kind == "exact":
            hessian = hvp_fn or product_with_hessian(
                require_grad_fn("gradient_penalty", grad_fn, params)
            )
            product = widen(hessian(params, g))
        else:
            grad_fn = require_grad_fn("gradient_penalty", grad_fn, params)
            product = _difference(kind, grad_fn, params, g, eps)
        new = jax.tree.map(lambda u, a, h: (a + gamma * h).astype(u.dtype), updates, g, product)
        return new, state

    return optax.GradientTransformationExtraArgs(init, update)


def _difference(kind, grad_fn, params, g, eps):
    """H g by a difference of gradients."""
    count, high, low, span = 0, g, g, eps
    if kind in ("forward", "central"):
        high = widen(grad_fn(move(params, eps, g), count))
        count += 1
    if kind in ("backward", "central"):
        low = widen(grad_fn(move(params, -eps, g), count))
    if kind == "central":
        span = 2 * eps
    return jax.tree.map(lambda a, b: (a - b) / span, high, low)
