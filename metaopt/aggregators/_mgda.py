"""MGDA: the shortest convex combination of the gradients.

    A(J) = Jᵀ w,    w = argmin wᵀ G w  over  w ≥ 0, Σ w = 1

It is zero exactly where no direction improves all objectives. Désidéri 2012 (Comptes Rendus
Mathématique 350); by Frank-Wolfe with exact line searches as in Sener and Koltun 2018,
arXiv:1810.04650, algorithm 2: from equal weights, towards the gradient of least product with the
combination, until a step is short. A long gradient gets a small weight.
"""

import jax
import jax.numpy as jnp

from metaopt.aggregators._aggregator import Aggregator, by_gramian
from metaopt.aggregators._gramian import check_at_least, normalised, preference_of, product
from metaopt.core import Scalar, checked


@checked
def mgda(*, num_steps: int = 100, tol: Scalar = 1e-3) -> Aggregator:
    """The point of the gradients' convex hull next to zero.

    Args:
        num_steps: most steps of Frank-Wolfe. Static.
        tol: the length of step, in [0, 1], after which there are no more. Traced.

    Returns:
        An aggregator; derivatives pass through the steps.

    Raises:
        ValueError: if `num_steps` is below 1 or `tol` is negative.
    """
    check_at_least("mgda", 1, num_steps=num_steps)
    check_at_least("mgda", 0, tol=tol)

    def weights(gramian, key=None):
        del key
        # Lengths of steps do not depend on the scale, which is kept near 1 for the derivatives.
        gramian = normalised(gramian)

        def step(carry, _):
            w, done = carry
            products = product(gramian, w)
            least = jnp.argmin(products)
            length = _line_search(products[least], jnp.dot(w, products), gramian[least, least])
            vertex = jax.nn.one_hot(least, len(gramian), dtype=gramian.dtype)
            moved = (1 - length) * w + length * vertex
            return (jnp.where(done, w, moved), done | (length < tol)), None

        start = (preference_of(None, gramian, "mgda"), jnp.array(False))
        return jax.lax.scan(step, start, None, length=num_steps)[0][0]

    return by_gramian(weights)


def _line_search(ab, aa, bb):
    """Where on the way from a (0) to b (1) the point next to zero is."""
    within = (bb > ab) & (aa > ab)
    length = jnp.where(within, aa - ab, 0.0) / jnp.where(within, aa + bb - 2 * ab, 1.0)
    return jnp.where(bb <= ab, 1.0, length)
