"""Shampoo: Kronecker-factored preconditioning of matrices, with the step length of Adam.

    L ← ρ L + (1-ρ) G Gᵀ,    R ← ρ R + (1-ρ) Gᵀ G,    m̂, v̂ as in Adam
    d = L^(-1/4) m̂ R^(-1/4),    u = d · |a| / |d|,    a = m̂ / √(v̂ + ε²)

Gupta et al. 2018, arXiv:1802.09568, algorithm 1. Moving averages, roots that are renewed only every
k steps and the grafted length follow Anil et al. 2020, arXiv:2002.09018, and so do roots by the
coupled Newton iteration of Guo and Higham 2006 (SIAM J. Matrix Anal. Appl. 28): products alone,
which in float32 are more exact than an eigendecomposition and an order of magnitude faster on CPU,
where the latter has also been seen to hang. Differs from both: the momentum is preconditioned, not
the gradient; tensors with more than two axes become a matrix whose columns are their last axis; a
side that is too long has no factor, and the other one then takes the power -1/2; tensors with fewer
than two axes follow Adam.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked

# Squared lengths below it count as zero; its power -3/2 must be a float32.
_TINY = 1e-24
# Eigenvalues of 1e-6 of the largest need about 20.
_MAX_STEPS = 60


class ShampooState(NamedTuple):
    """Moments like the parameters; for each leaf, a pair of factors and of their roots.

    Attributes:
        count: steps taken.
        mu: moving average of the gradients.
        nu: moving average of their squares.
        factors: for each leaf (L, R), None where there is no factor.
        roots: for each leaf (L^-p, R^-p) of the last step at which they were renewed.
    """

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    factors: tuple
    roots: tuple


@checked
def scale_by_shampoo(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    factor_decay: Scalar = 0.95,
    ridge: Scalar = 1e-6,
    every: int = 10,
    max_size: int = 256,
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by Shampoo's direction, of the length that Adam's would have.

    Derivatives pass through moments and lengths; the roots count as constants, as they do between
    two renewals.

    Args:
        b1: decay of the first moment. Traced.
        b2: decay of the second moment, of which only the length is used. Traced.
        eps: ε of Adam. Traced.
        factor_decay: ρ, decay of the factors. Traced.
        ridge: added to a factor's eigenvalues, as a fraction of its largest absolute row sum, which
            is at least the largest of them. Traced.
        every: steps k between new roots. Static.
        max_size: longest side that gets a factor. Static.

    Returns:
        A transformation whose updates have the dtypes of the gradients; its state is in float32 at
        least. Mapped over settings it still renews roots only when they are due.

    Raises:
        ValueError: if `every` or `max_size` is below 1.
    """
    for name, count in {"every": every, "max_size": max_size}.items():
        if count < 1:
            raise ValueError(f"scale_by_shampoo: {name} must be at least 1, got {count}.")

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _dtype(p)), params)
        factors = tuple(_sides(x, max_size) for x in jax.tree.leaves(zeros))
        return ShampooState(jnp.zeros((), jnp.int32), zeros, zeros, factors, factors)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        grads = jax.tree.map(lambda g: g.astype(_dtype(g)), updates)
        count = state.count + 1
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        factors = tuple(
            _accumulate(pair, g, factor_decay)
            for pair, g in zip(state.factors, jax.tree.leaves(grads), strict=True)
        )
        roots = jax.lax.cond(
            state.count % every == 0,
            lambda: _all_roots(factors, ridge),
            lambda: state.roots,
        )
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, count)
        leaves, structure = jax.tree.flatten(mu_hat)
        directions = [
            _direction(m, v, pair, eps)
            for m, v, pair in zip(leaves, jax.tree.leaves(nu_hat), roots, strict=True)
        ]
        new = jax.tree.map(
            lambda u, g: u.astype(g.dtype), jax.tree.unflatten(structure, directions), updates
        )
        return new, ShampooState(count, mu, nu, factors, roots)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    factor_decay: Scalar = 0.95,
    ridge: Scalar = 1e-6,
    every: int = 10,
    max_size: int = 256,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo with Adam's step length: learning rates of Adam carry over.

    Args:
        learning_rate: step size, a scalar or a schedule. Traced.
        b1: as in `scale_by_shampoo`.
        b2: as there.
        eps: as there.
        factor_decay: as there.
        ridge: as there.
        every: as there. Static.
        max_size: as there. Static.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `scale_by_shampoo`.
    """
    direction = scale_by_shampoo(
        b1=b1,
        b2=b2,
        eps=eps,
        factor_decay=factor_decay,
        ridge=ridge,
        every=every,
        max_size=max_size,
    )
    return optax.with_extra_args_support(
        optax.chain(direction, optax.scale_by_learning_rate(learning_rate))
    )


def _dtype(x):
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def _matrix(x: Float[Array, "..."]) -> Float[Array, "rows columns"]:
    return x.reshape(-1, x.shape[-1])


def _sides(x, max_size):
    """Zeros for the factors of a tensor."""
    if x.ndim < 2:
        return (None, None)
    return tuple(
        jnp.zeros((size, size), x.dtype) if size <= max_size else None for size in _matrix(x).shape
    )


def _accumulate(pair, g, decay):
    left, right = pair
    if left is not None:
        left = decay * left + (1 - decay) * _matrix(g) @ _matrix(g).T
    if right is not None:
        right = decay * right + (1 - decay) * _matrix(g).T @ _matrix(g)
    return left, right


def _all_roots(factors, ridge):
    def roots(pair):
        power = 0.5 / max(1, sum(factor is not None for factor in pair))
        return tuple(None if x is None else _inverse_root(x, power, ridge) for x in pair)

    return tuple(map(roots, factors))


def _inverse_root(factor, power, ridge):
    """(factor + ridge · norm)^-power by the coupled Newton iteration, in products alone.

    With p = 1/power:  T = ((1 + 1/p) − M/p),  X ← X T,  M ← Tᵖ M;  M → I and X → factor^(-1/p).
    """
    factor = jax.lax.stop_gradient(factor)
    # A NaN would keep the loop going to its end; the momentum keeps it, so the update shows it.
    factor = jnp.where(jnp.isfinite(factor), factor, 0.0)
    order, eye = round(1 / power), jnp.eye(len(factor), dtype=factor.dtype)
    norm = jnp.abs(factor).sum(axis=1).max() + _TINY  # At least the largest eigenvalue.
    scaled = factor / norm + (ridge + _TINY) * eye
    scale = (1 + order) / (2 * (1 + ridge))  # Eigenvalues of M start below 1 + p.
    enough = 10 * jnp.finfo(factor.dtype).eps

    def error_of(m):
        return jnp.abs(m - eye).max()

    def going(carry):
        _, m, before, count = carry
        error = error_of(m)
        return (error > enough) & ((error < before) | (error > 0.1)) & (count < _MAX_STEPS)

    def step(carry):
        x, m, _, count = carry
        t = (1 + 1 / order) * eye - m / order
        return x @ t, jnp.linalg.matrix_power(t, order) @ m, error_of(m), count + 1

    start = (scale ** (1 / order) * eye, scale * scaled, jnp.asarray(jnp.inf, norm.dtype), 0)
    root, *_ = jax.lax.while_loop(going, step, start)
    return norm**-power * root


def _direction(m, v, pair, eps):
    adam = m * jax.lax.rsqrt(v + eps**2)
    left, right = pair
    if left is None and right is None:
        return adam
    d = _matrix(m)
    d = d if left is None else left @ d
    d = d if right is None else d @ right
    # |a| / |d| without the root of zero, whose derivative is infinite.
    length2, target2 = jnp.sum(d**2) + _TINY, jnp.sum(adam**2)
    ratio = target2 * jax.lax.rsqrt(target2 + _TINY) * jax.lax.rsqrt(length2)
    return (ratio * d).reshape(m.shape)
