"""UPGrad: the mean of the gradients, each moved to where it conflicts with none.

    A(J) = Σᵢ uᵢ π(gᵢ),    π(x) = argmin |x - y| over all y with J y ≥ 0

A step along -A(J) increases no objective to first order, and A(J) = Jᵀ Σᵢ vᵢ, where vᵢ minimises
vᵀ G v over v ≥ uᵢ eᵢ. Quinton and Rey 2024, arXiv:2406.16232. As in the authors' code, the
programmes are solved for G / trace(G) + ridge · I, and G counts as zero if its trace is tiny, while
the weights then multiply the J that was given.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.aggregators._aggregator import Aggregator, by_gramian
from metaopt.aggregators._complementarity import dual_cone_weights
from metaopt.aggregators._gramian import (
    check_at_least,
    check_preference,
    normalised,
    preference_of,
    with_ridge,
)
from metaopt.core import Scalar, checked


@checked
def upgrad(
    *,
    preference: Float[Array, " m"] | None = None,
    norm_eps: Scalar = 1e-4,
    ridge: Scalar = 1e-4,
) -> Aggregator:
    """A combination of gradients that conflicts with none of them.

    Args:
        preference: uᵢ, how much each objective counts; None: 1/m. Traced.
        norm_eps: traces of G below it count as zero; the weights are then `preference`. Traced.
        ridge: added to the normalised Gramian. It makes A(J) conflict a little; 0 is exact, and
            meant for gradients that are linearly independent. Traced.

    Returns:
        An aggregator; derivatives pass through the programmes by implicit differentiation.

    Raises:
        ValueError: if `preference` is no vector, or a number is negative.
    """
    check_preference(preference, "upgrad")
    check_at_least("upgrad", 0, norm_eps=norm_eps, ridge=ridge)

    def weights(gramian, key=None):
        del key
        bounds = jnp.diag(preference_of(preference, gramian, "upgrad"))
        matrix = with_ridge(normalised(gramian, norm_eps), ridge)
        return jnp.sum(jax.vmap(dual_cone_weights, (None, 0))(matrix, bounds), axis=0)

    return by_gramian(weights)
