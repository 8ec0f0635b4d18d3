"""Dual projection: the mean gradient, moved to where it conflicts with no gradient.

    A(J) = π(Jᵀ u),    π(x) = argmin |x - y| over all y with J y ≥ 0

The rule by which gradient episodic memory keeps the losses of earlier tasks from rising. Lopez-Paz
and Ranzato 2017 (NIPS), arXiv:1706.08840, eq. 11; in the form of Quinton and Rey 2024,
arXiv:2406.16232, with the constants of `metaopt.aggregators.upgrad`.
"""

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
def dual_proj(
    *,
    preference: Float[Array, " m"] | None = None,
    norm_eps: Scalar = 1e-4,
    ridge: Scalar = 1e-4,
) -> Aggregator:
    """The direction next to the mean that conflicts with no gradient.

    Args:
        preference: u, how much each objective counts; None: 1/m. Traced.
        norm_eps: as in `upgrad`.
        ridge: as there.

    Returns:
        An aggregator; derivatives pass through the programme by implicit differentiation.

    Raises:
        ValueError: as in `upgrad`.
    """
    check_preference(preference, "dual_proj")
    check_at_least("dual_proj", 0, norm_eps=norm_eps, ridge=ridge)

    def weights(gramian, key=None):
        del key
        u = preference_of(preference, gramian, "dual_proj")
        return dual_cone_weights(with_ridge(normalised(gramian, norm_eps), ridge), u)

    return by_gramian(weights)
