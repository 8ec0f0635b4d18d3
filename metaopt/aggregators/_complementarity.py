"""Which entries of a small quadratic programme are positive: block principal pivoting.

    s ≥ 0,    y = G s + q ≥ 0,    sᵀ y = 0

are the conditions of  min ½ sᵀ G s + qᵀ s  over s ≥ 0  for a positive definite G. Entries that
break their sign change sides, all of them at once while that makes them fewer, else only the last
one, which is sure to end. Júdice and Pires 1994 (Computers & Operations Research 21). It is exact
after a few solves of m equations; with the positive entries known, the solution is smooth in G, q.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metaopt.aggregators._gramian import product, solve_within

# Times that all change at once without becoming fewer; a larger number saves nothing.
_PATIENCE = 3


def positive_entries(matrix: Float[Array, "m m"], q: Float[Array, " m"]) -> Bool[Array, " m"]:
    """Which entries of the solution s are positive; no derivative passes through it.

    Args:
        matrix: G, positive definite.
        q: the linear term.
    """
    matrix, q = jax.lax.stop_gradient((matrix, q))
    size = len(matrix)
    eps = float(jnp.finfo(matrix.dtype).eps)

    def wrong(inside):
        s = solve_within(matrix, -q, inside)
        y = product(matrix, s) + q
        size_y = jnp.max(product(jnp.abs(matrix), jnp.abs(s)) + jnp.abs(q))
        return jnp.where(inside, s < -10 * eps * jnp.max(jnp.abs(s)), y < -10 * eps * size_y)

    def going(carry):
        _, bad, _, _, count = carry
        return jnp.any(bad) & (count < 20 * (size + 1))

    def step(carry):
        inside, bad, fewest, patience, count = carry
        number = jnp.sum(bad)
        better = number < fewest
        patience = jnp.where(better, _PATIENCE, patience - 1)
        last = size - 1 - jnp.argmax(bad[::-1])
        change = jnp.where(patience >= 0, bad, jnp.arange(size) == last)
        inside = inside ^ change
        return inside, wrong(inside), jnp.minimum(fewest, number), patience, count + 1

    # With no positive entry s = 0 and y = q.
    bad = q < -10 * eps * jnp.max(jnp.abs(q))
    initial = (jnp.zeros(size, bool), bad, jnp.asarray(size + 1), jnp.asarray(_PATIENCE), 0)
    return jax.lax.while_loop(going, step, initial)[0]


def dual_cone_weights(matrix: Float[Array, "m m"], u: Float[Array, " m"]) -> Float[Array, " m"]:
    """argmin vᵀ G v over v ≥ u: then Jᵀ v is the point of {x: J x ≥ 0} next to Jᵀ u.

    Differentiable where the set of entries above their bound does not change, which is implicit
    differentiation of the programme.

    Args:
        matrix: G = J Jᵀ, positive definite.
        u: the lower bound.
    """
    q = product(matrix, u)
    return u + solve_within(matrix, -q, positive_entries(matrix, q))
