"""CAGrad: near the mean gradient, the direction in which the worst objective falls fastest.

    A(J) = argmax_d minᵢ gᵢ·d   over  |d - ḡ| ≤ c |ḡ|,    ḡ = (1/m) Σᵢ gᵢ

Liu et al. 2021, arXiv:2110.14048, algorithm 1. Its solution is d = ḡ + Jᵀ s with s ≥ 0,
|Jᵀ s| = c |ḡ| and gᵢ·d equal to one number τ where sᵢ > 0, at least τ elsewhere: for a given τ a
programme that is solved exactly, in which |Jᵀ s| grows with τ, so τ is found by bisection, and once
more, exactly and differentiably, from the entries of s that are positive. As in the code of
Quinton and Rey 2024, arXiv:2406.16232, G is divided by its trace, and the weights are zero where
some convex combination of the gradients nearly vanishes.
"""

import jax
import jax.numpy as jnp

from metaopt.aggregators._aggregator import Aggregator, by_gramian
from metaopt.aggregators._complementarity import positive_entries
from metaopt.aggregators._gramian import (
    check_at_least,
    normalised,
    preference_of,
    product,
    solve_within,
    with_ridge,
)
from metaopt.core import Scalar, checked


@checked
def cagrad(*, c: Scalar = 0.5, norm_eps: Scalar = 1e-4) -> Aggregator:
    """The mean gradient, turned towards the objectives that it serves worst.

    Args:
        c: radius of the ball about the mean, in units of its length; 0 is the mean, below 1 a
            minimum of the mean loss is still approached. Traced.
        norm_eps: traces of G below it, and shorter combinations in units of its root, count as
            zero. Traced.

    Returns:
        An aggregator; derivatives pass through the solution by implicit differentiation.

    Raises:
        ValueError: if a number is negative.
    """
    check_at_least("cagrad", 0, c=c, norm_eps=norm_eps)

    def weights(gramian, key=None):
        del key
        u = preference_of(None, gramian, "cagrad")
        scaled = normalised(gramian, norm_eps)
        matrix = with_ridge(scaled)
        means = product(matrix, u)
        radius2 = c**2 * jnp.maximum(jnp.dot(u, product(scaled, u)), 0.0)
        inside = _positive_at_solution(matrix, means, radius2)
        s = _on_face(matrix, means, radius2, inside)
        # With s = w |Jᵀ s| / |Jᵀ w| for the convex weights w, |Jᵀ w| is the radius over Σ s.
        # Shorter ones than the rounding errors of G cannot be told from zero.
        rounding = 2 * len(u) * float(jnp.finfo(u.dtype).eps)
        vanishing = radius2 < jnp.maximum(norm_eps**2, rounding) * jnp.sum(s) ** 2
        keep = ~vanishing & (jnp.trace(scaled) > 0)
        return jnp.where(keep, u + s, 0.0)

    return by_gramian(weights)


def _positive_at_solution(matrix, means, radius2):
    """Bisects τ; the entries that are positive there."""
    matrix, means, radius2 = jax.lax.stop_gradient((matrix, means, radius2))

    def inside_at(level):
        return positive_entries(matrix, means - level)

    def halve(_, bounds):
        low, high = bounds
        level = (low + high) / 2
        s = solve_within(matrix, level - means, inside_at(level))
        short = jnp.dot(s, product(matrix, s)) < radius2
        return jnp.where(short, level, low), jnp.where(short, high, level)

    # No product of a gradient with the solution exceeds that of their lengths.
    longest = jnp.sqrt(jnp.max(jnp.diagonal(matrix)))
    mean_length = jnp.sqrt(jnp.maximum(jnp.mean(means), 0.0))
    high = 1.1 * longest * (mean_length + jnp.sqrt(radius2)) + 1e-30
    bits = jnp.finfo(matrix.dtype).nmant + 8
    low, high = jax.lax.fori_loop(0, bits, halve, (jnp.min(means), high))
    return inside_at((low + high) / 2)


def _on_face(matrix, means, radius2, inside):
    """s = G⁻¹(τ 1 - G u) on the entries inside, with τ such that sᵀ G s is the squared radius."""
    ones = jnp.ones_like(means)
    rise, fall = solve_within(matrix, ones, inside), solve_within(matrix, means, inside)
    # sᵀ G s = a τ² - 2 b τ + c on this face, of whose roots the larger one is meant.
    a = jnp.sum(jnp.where(inside, rise, 0.0))
    b, c = jnp.dot(rise, jnp.where(inside, means, 0.0)), jnp.dot(fall, means)
    root2 = b**2 - a * (c - radius2)
    some = jnp.any(inside) & (root2 > 0) & (radius2 > 0)
    level = (b + jnp.sqrt(jnp.where(some, root2, 1.0))) / jnp.where(some, a, 1.0)
    return jnp.where(some & inside, jnp.maximum(level * rise - fall, 0.0), 0.0)
