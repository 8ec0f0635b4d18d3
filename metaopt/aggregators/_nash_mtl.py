"""Nash-MTL: the bargaining solution, in which all objectives gain by the same proportion.

    A(J) = Jᵀ α,    G α = 1/α  (entry by entry),  α > 0

Navon et al. 2022, arXiv:2202.01017, §3: the direction that maximises Σᵢ log gᵢ·d in a ball. It does
not depend on how objectives are scaled, and its length is √m whatever theirs are, so that step
sizes come from the learning rate alone; as in the authors' code it is then clipped to `max_norm`. α
is the minimum of the strictly convex ½ αᵀ G α - Σᵢ log αᵢ, and is found by damped Newton steps,
which never leave α > 0, instead of the authors' sequence of convex programmes, which stops near.
"""

import jax
import jax.numpy as jnp

from metaopt.aggregators._aggregator import Aggregator, by_gramian, wide
from metaopt.aggregators._gramian import check_at_least, normalised, product, with_ridge
from metaopt.core import Scalar, checked

_MAX_STEPS = 200


@checked
def nash_mtl(*, max_norm: Scalar = 1.0, ridge: Scalar = 0.0) -> Aggregator:
    """A direction in which every objective's gain is worth the same to it.

    Args:
        max_norm: the largest length of the result, which matters below √m. Traced.
        ridge: added to G / trace(G); at least the rounding errors of G are, so that where no such α
            exists the result is near zero. Traced.

    Returns:
        An aggregator; derivatives pass through the solution by implicit differentiation.

    Raises:
        ValueError: if a number is negative.
    """
    check_at_least("nash_mtl", 0, max_norm=max_norm, ridge=ridge)

    def scaled_weights(gramian, key=None):
        """α for G / trace(G)."""
        del key
        scaled = normalised(gramian)
        return jnp.where(jnp.trace(scaled) > 0, _bargain(with_ridge(scaled, ridge)), 0.0)

    def weights(gramian, key=None):
        del key
        alpha, trace = scaled_weights(gramian), jnp.trace(gramian)
        length = _root(jnp.dot(alpha, product(normalised(gramian), alpha)))
        root = _root(trace)
        return alpha * _shrink(length, max_norm) / jnp.where(root > 0, root, 1.0)

    def aggregate(jacobian, key=None):
        del key
        direction = by_gramian(scaled_weights).aggregate(_unit(jacobian))
        factor = _shrink(_norm(direction), max_norm)
        return jax.tree.map(lambda d, x: (factor * d).astype(x.dtype), direction, jacobian)

    return Aggregator(aggregate, weights)


def _bargain(matrix):
    """The α of a positive definite G."""
    fixed = jax.lax.stop_gradient(matrix)

    def newton(alpha):
        hessian = fixed + jnp.diag(1 / alpha**2)
        slope = product(fixed, alpha) - 1 / alpha
        move = jnp.linalg.solve(hessian, slope)
        return move, jnp.sqrt(jnp.maximum(jnp.dot(move, slope), 0.0))

    def going(carry):
        _, decrement, best, count = carry
        # Rounding stops the decrease.
        return (count < _MAX_STEPS) & ((decrement > 1e-2) | (decrement < best / 2))

    def step(carry):
        alpha, decrement, best, count = carry
        move, decrement_now = newton(alpha)
        # The damping of self-concordant functions keeps α positive.
        damping = jnp.where(decrement_now > 0.25, 1 / (1 + decrement_now), 1.0)
        return (
            alpha - damping * move,
            decrement_now,
            jnp.where(count > 0, decrement, best),
            count + 1,
        )

    start = jax.lax.rsqrt(jnp.diagonal(fixed))
    inf = jnp.asarray(jnp.inf, matrix.dtype)
    alpha, *_ = jax.lax.while_loop(going, step, (start, inf, 4 * inf, 0))
    alpha = jax.lax.stop_gradient(alpha)
    # One more step, whose value is nil and whose derivative is that of the solution.
    slope = product(matrix, alpha) - 1 / alpha
    return alpha - jnp.linalg.solve(fixed + jnp.diag(1 / alpha**2), slope)


def _root(x):
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _norm(tree):
    return _root(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


def _unit(tree):
    """A tree of norm 1, or 0, whose entries' squares may overflow or vanish."""
    leaves = [wide(x) for x in jax.tree.leaves(tree)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]))
    largest = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    scaled = jax.tree.map(lambda x: wide(x) / largest, tree)
    norm = _norm(scaled)
    return jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1.0), scaled)


def _shrink(length, max_norm):
    """The factor that clips a vector of this length."""
    long = length > max_norm
    return jnp.where(long, max_norm / jnp.where(long, length, 1.0), 1.0)
