"""PCGrad: each gradient loses its components against the others, one after another.

    gᵢ ← gᵢ - (gᵢ·gⱼ / |gⱼ|²) gⱼ   if gᵢ·gⱼ < 0,   for all j ≠ i in random order;    A(J) = Σᵢ gᵢ

with the gⱼ that were given on the right. Yu et al. 2020, arXiv:2001.06782, algorithm 1. A sum, not
a mean: without conflicts it is m times that of `metaopt.aggregators.mean`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metaopt.aggregators._aggregator import Aggregator, by_gramian
from metaopt.aggregators._gramian import normalised, product
from metaopt.core import checked


@checked
def pcgrad() -> Aggregator:
    """The sum of gradients that were projected on the normal planes of those they conflict with.

    Returns:
        An aggregator that needs a key; for two objectives the order does not matter.
    """

    def weights(gramian, key=None):
        if key is None:
            raise ValueError(
                "pcgrad: aggregate needs a key, which the order is drawn from; pass "
                "aggregate(jacobian, key)."
            )
        size = len(gramian)
        orders = jax.vmap(lambda key: jax.random.permutation(key, size))(
            jax.random.split(key, size)
        )
        return in_orders(gramian, orders)

    return by_gramian(weights)


def in_orders(gramian: Float[Array, "m m"], orders: Int[Array, "m m"]) -> Float[Array, " m"]:
    """The weights if gradient i meets the others in the order of row i."""
    gramian = normalised(gramian)

    def one(index, order):
        def meet(w, other):
            inner, square = product(gramian, w)[other], gramian[other, other]
            conflict = (inner < 0) & (other != index) & (square > 0)
            loss = jnp.where(conflict, inner, 0.0) / jnp.where(conflict, square, 1.0)
            return w.at[other].add(-loss), None

        start = jax.nn.one_hot(index, len(gramian), dtype=gramian.dtype)
        return jax.lax.scan(meet, start, order)[0]

    return jnp.sum(jax.vmap(one)(jnp.arange(len(gramian)), orders), axis=0)
