"""AdaGrad-Norm: stochastic gradient descent whose one step size falls with the gradients seen.

    b² <- b² + ‖g‖²,    w <- w − η g / b,    b = b₀ at first

The current gradient counts. Ward, Wu and Bottou 2019 (ICML), arXiv:1806.01811, algorithm 1. The
norm is that of the whole tree, unlike in `optax.adagrad`, which has a step size per entry. b itself
is stored: its square may not be a float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import global_norm, known, quotient, wide


class AdaGradNormState(NamedTuple):
    """What gradients are divided by.

    Attributes:
        norm: b, a scalar; with `per_leaf`, a tree of them.
    """

    norm: PyTree


@checked
def scale_by_adagrad_norm(
    *, b0: Scalar = 1e-2, per_leaf: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Divides gradients by the root of the sum of all their squared norms.

    Args:
        b0: what the root starts from, in units of the gradients. Traced.
        per_leaf: one b per leaf instead of one for all. Static.

    Returns:
        A transformation whose updates have the dtypes of the gradients; b is in float32 at least.

    Raises:
        ValueError: if `b0` is negative.
    """
    if known(b0) and not b0 >= 0:
        raise ValueError(f"scale_by_adagrad_norm: b0 must not be negative, got {b0}; try 0.01.")

    def start(leaves):
        dtype = jnp.result_type(jnp.float32, *map(wide, leaves))
        return jnp.asarray(b0).astype(dtype)

    def grown(before, grads):
        return global_norm((before, grads)).astype(before.dtype)

    def init(params):
        if per_leaf:
            return AdaGradNormState(jax.tree.map(lambda p: start([p]), params))
        return AdaGradNormState(start(jax.tree.leaves(params)))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        if per_leaf:
            norm = jax.tree.map(grown, state.norm, updates)
            return jax.tree.map(_divided, updates, norm), AdaGradNormState(norm)
        norm = grown(state.norm, updates)
        return jax.tree.map(lambda g: _divided(g, norm), updates), AdaGradNormState(norm)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def adagrad_norm(
    learning_rate: optax.ScalarOrSchedule = 1.0, *, b0: Scalar = 1e-2, per_leaf: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent with the step size η / b.

    Args:
        learning_rate: η, in units of the parameters, a scalar or a schedule. Traced.
        b0: as in `scale_by_adagrad_norm`.
        per_leaf: as there. Static.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `scale_by_adagrad_norm`.
    """
    return optax.with_extra_args_support(
        optax.chain(
            scale_by_adagrad_norm(b0=b0, per_leaf=per_leaf),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def _divided(g, norm):
    return quotient(g.astype(norm.dtype), norm).astype(g.dtype)
