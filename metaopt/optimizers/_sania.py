"""SANIA: the Polyak step with a preconditioner, which needs no learning rate.

    s = g / B,    q = ⟨g, s⟩,    λ = 1 − √(1 − 2 (f − f*)/q) where 2 (f − f*) ≤ q, else 1
    w ← w − λ s

λ s is the shortest step, in the norm of B, that reaches f* in the quadratic model of curvature B;
where the model does not go that low, its minimiser. With B = Σ g² or an average of g², *not* their
roots, the loss along the way does not depend on the scale of any input. Abdukhakimov et al. 2023,
arXiv:2312.17369. Differs from released code: entries where B is 0 stay where they are, instead of
B being bounded from below, which would undo the invariance; a value below f* counts as f*.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known, moderate, refuse_decays, root, widen

Curvature = Literal["adam_sqr", "adagrad_sqr", "adam", "adagrad"]


class SANIAState(NamedTuple):
    """What the preconditioner remembers.

    Attributes:
        preconditioner: the state of the transformation that makes B of gradients.
    """

    preconditioner: PyTree


@checked
def sania(
    preconditioner: Curvature | optax.GradientTransformation,
    *,
    f_star: Scalar = 0.0,
    b2: Scalar = 0.999,
    eps: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The preconditioned Polyak step; no learning rate is to be chained to it.

    Its `update` needs `value`, the loss on the batch of the gradient.

    Args:
        preconditioner: "adagrad_sqr" (B = Σ g²) or "adam_sqr" (the corrected moving average of g²),
            which make the losses invariant to scales; "adagrad" or "adam" for their roots, which do
            not; or a transformation whose updates are B, such as an estimate of the diagonal of the
            Hessian. It is given the parameters and all extra arguments.
        f_star: f*, the least loss of a batch; 0 where a model can fit them all. Traced.
        b2: decay of the moving average. Traced.
        eps: entries with B at most that do not move; B counts as 0 where its square would not be a
            number of its dtype. Traced.

    Returns:
        An optimizer whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `preconditioner` is an unknown word, `b2` is outside [0, 1) or `eps` is
            negative; in `update` if `value` is missing.
    """
    refuse_decays("sania", b2=b2)
    if known(eps) and not eps >= 0:
        raise ValueError(f"sania: eps must not be negative, got {eps}; try 0.")
    inner = optax.with_extra_args_support(
        _squares(preconditioner, b2) if isinstance(preconditioner, str) else preconditioner
    )

    def init(params):
        return SANIAState(inner.init(widen(params)))

    def update(updates, state, params=None, *, value=None, **extra_args):
        if value is None:
            raise ValueError(
                "sania: update needs value, the loss on the batch of the gradient; pass value=loss."
            )
        # Squares of what is larger are not finite.
        grads = moderate(widen(updates))
        curvature, memory = inner.update(
            grads, state.preconditioner, params, value=value, **extra_args
        )
        steps = jax.tree.map(lambda g, b: _divided(g, b, eps), grads, curvature)
        q = jnp.asarray(optax.tree.vdot(grads, steps))
        size = _step_size(jnp.maximum(value - f_star, 0).astype(q.dtype), q)
        new = jax.tree.map(lambda s, g: (-size * s).astype(g.dtype), steps, updates)
        return new, SANIAState(memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _squares(kind: str, b2: Scalar) -> optax.GradientTransformation:
    """B as a transformation of gradients."""
    shape: Callable = root if kind in ("adam", "adagrad") else lambda x: x

    def init(params):
        return jnp.zeros((), jnp.int32), optax.tree.zeros_like(params)

    def update(updates, state, params=None):
        del params
        count, total = state[0] + 1, state[1]
        if kind.startswith("adagrad"):
            total = jax.tree.map(lambda v, g: v + g**2, total, updates)
            mean = total
        else:
            total = optax.tree.update_moment(updates, total, b2, 2)
            mean = optax.tree.bias_correction(total, b2, count)
        return jax.tree.map(shape, mean), (count, total)

    return optax.GradientTransformation(init, update)


def _divided(g, b, eps):
    b = b.astype(g.dtype)
    live = b > jnp.maximum(eps, float(jnp.finfo(g.dtype).tiny) ** 0.5).astype(g.dtype)
    return jnp.where(live, g / jnp.where(live, b, 1), 0)


def _step_size(gap: Float[Array, ""], q: Float[Array, ""]) -> Float[Array, ""]:
    """1 − √(1 − r) as r/(1 + √(1 − r)), which keeps its digits for small r = 2 gap/q."""
    inside = (2 * gap < q) & (q > float(jnp.finfo(q.dtype).tiny) ** 0.5)
    ratio = jnp.where(inside, 2 * gap / jnp.where(inside, q, 1), 0)
    # The input of the root is positive inside, and 1 outside.
    return jnp.where(inside, ratio / (1 + jnp.sqrt(1 - ratio)), 1)
