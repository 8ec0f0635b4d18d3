"""Averages of iterates that forget the early ones, around any optimizer.

    x̄₁ = x₁,    x̄ₜ = (1-wₜ) x̄ₜ₋₁ + wₜ xₜ,    wₜ = (1+γ) / (t+γ)

γ = 0 is the plain mean; the larger γ, the more the late iterates count. Shamir and Zhang 2013
(ICML), arXiv:1212.1824, §4; x̄ is what the authors of DoG evaluate, γ = 8 (Ivgi et al. 2023,
arXiv:2302.12022), for their steps do not shrink. DoG is `optax.contrib.dog`, L-DoG
`optax.scale_by_distance_over_gradients` followed by `optax.scale(-1)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from metaopt import tree
from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known, widen


class PolynomialAveragingState(NamedTuple):
    """The state of the optimizer and the average of what it led to.

    Attributes:
        inner: of the optimizer.
        average: x̄, in float32 at least.
        count: iterates in it.
    """

    inner: PyTree
    average: PyTree
    count: Int[Array, ""]


@checked
def polynomial_averaging(
    inner: optax.GradientTransformation, *, gamma: Scalar = 8.0
) -> optax.GradientTransformationExtraArgs:
    """An optimizer with the same updates that averages the parameters they lead to.

    It wraps a whole optimizer, for iterates are what the updates that it returns lead to.

    Args:
        inner: any optax optimizer.
        gamma: γ. Traced.

    Returns:
        A transformation whose updates are those of `inner`; it needs params. The average is read
        off by `averaged_params`.

    Raises:
        ValueError: if `gamma` is negative; in `update`, if params are missing.
    """
    if known(gamma) and not gamma >= 0:
        raise ValueError(
            f"polynomial_averaging: gamma must not be negative, got {gamma}; 0 is the plain mean."
        )
    extended = optax.with_extra_args_support(inner)

    def init(params):
        # Copied, so that the buffers of the parameters may be given away.
        average = jax.tree.map(jnp.array, widen(params))
        return PolynomialAveragingState(extended.init(params), average, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "polynomial_averaging: params is missing; call update(grads, state, params)."
            )
        updates, inner_state = extended.update(updates, state.inner, params, **extra_args)
        count = state.count + 1
        iterates = widen(optax.apply_updates(params, updates))
        weight = (1 + gamma) / (count + gamma)
        average = jax.tree.map(lambda a, x: (1 - weight) * a + weight * x, state.average, iterates)
        average = tree.cast_like(average, state.average)
        return updates, PolynomialAveragingState(inner_state, average, count)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged_params(state: PyTree) -> PyTree:
    """The average of the iterates, wherever in the state of an optimizer it is.

    Args:
        state: of an optimizer of which one part is `polynomial_averaging`.

    Returns:
        The average, in float32 at least; the parameters before the first step.

    Raises:
        ValueError: if there is no such part, or more than one.
    """

    def is_average(node):
        return isinstance(node, PolynomialAveragingState)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_average) if is_average(x)]
    if len(found) != 1:
        raise ValueError(
            f"averaged_params: state has {len(found)} parts of polynomial_averaging, not one; pass "
            "the state of an optimizer made by it."
        )
    return found[0].average
