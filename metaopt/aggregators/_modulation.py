"""Adaptive gradient modulation: modalities of one network keep the pace of their running averages.

    φₐ = ½ (f(a, v) - f(0, v) + f(a, 0)),    φᵥ likewise,    φₐ + φᵥ = f(a, v)
    sₘ = mean cross-entropy of φₘ,    rₘ = exp(2 (mean(s) - sₘ)),    tₘ = exp(2 (mean(ŝ) - ŝₘ))
    kₘ = exp(α (tₘ - rₘ))

and the gradient that enters φₘ is multiplied by kₘ, the network's output being as before. ŝ are
averages of s over the steps so far. Li et al. 2023 (ICCV), arXiv:2308.07686. With more than two
modalities φₘ is the Shapley value of m, over the sets of those that are present, the output without
any counting as 0; for two that is the formula above.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metaopt.aggregators._aggregator import wide
from metaopt.core import Scalar, checked

# Least probability in a cross-entropy, as in the authors' code.
_LEAST = 1e-8


class AGMState(NamedTuple):
    """Running averages.

    Attributes:
        count: steps so far.
        mean_scores: ŝ of each modality.
    """

    count: Int[Array, ""]
    mean_scores: Float[Array, " modalities"]


class AGM(NamedTuple):
    """A controller of the modalities' gradients.

    Attributes:
        init: `(num_modalities) -> state`.
        update: `(state, outputs, labels) -> (coefficients, state)`: kₘ of the step whose
            `shapley_outputs` these are, computed before the averages take them in. No derivative
            passes through it.
    """

    init: Callable[[int], AGMState]
    update: Callable[..., tuple[Float[Array, " modalities"], AGMState]]


@checked
def agm(*, alpha: Scalar = 1.0) -> AGM:
    """Slows the modality down that is ahead of its average, and speeds up the others.

    Args:
        alpha: strength of the modulation; 0 leaves gradients as they are. Traced.

    Returns:
        The controller; `modulate` applies its coefficients.
    """

    def init(num_modalities):
        if num_modalities < 2:
            raise ValueError(f"agm: num_modalities must be at least 2, got {num_modalities}.")
        return AGMState(jnp.zeros((), jnp.int32), jnp.zeros(num_modalities))

    def update(state, outputs, labels):
        outputs, state = jax.lax.stop_gradient((outputs, state))
        scores = jnp.stack([_cross_entropy(x, labels) for x in outputs])
        scores = scores.astype(state.mean_scores.dtype)
        coefficients = jnp.exp(alpha * (_discrepancy(state.mean_scores) - _discrepancy(scores)))
        count = state.count + 1
        means = state.mean_scores + (scores - state.mean_scores) / count
        return jax.lax.stop_gradient(coefficients), AGMState(count, means)

    return AGM(init, update)


@jax.custom_jvp
def modulate(x: Float[Array, "..."], k: Scalar) -> Float[Array, "..."]:
    """The identity, through which derivatives by `x` pass multiplied by `k`.

    Args:
        x: an array, such as the output of one modality.
        k: the factor, which is not differentiated. Traced.

    Returns:
        x, bit for bit.
    """
    del k
    return x


@modulate.defjvp
def _modulate_jvp(primals, tangents):
    x, k = primals
    return x, (k * tangents[0]).astype(tangents[0].dtype)


def shapley_outputs(
    apply: Callable[..., Float[Array, "..."]],
    modalities: Sequence[Float[Array, "..."]],
    *,
    padded: Callable[..., Float[Array, "..."]] | None = None,
) -> tuple[Float[Array, "..."], ...]:
    """What each modality contributes to a network's output; they sum to it.

    Args:
        apply: `(*modalities) -> outputs`.
        modalities: two or more inputs.
        padded: the network for passes in which some modalities are zeros, such as one that leaves
            its running statistics alone; None: `apply`. Static.

    Returns:
        One array like the output for each modality, after as many passes as there are sets of
        modalities.

    Raises:
        ValueError: for fewer than two modalities.
    """
    count = len(modalities)
    if count < 2:
        raise ValueError(f"shapley_outputs: modalities must be at least two, got {count}.")
    everything = frozenset(range(count))
    values = {everything: apply(*modalities)}
    for size in range(1, count):
        for present in map(frozenset, itertools.combinations(range(count), size)):
            inputs = [x if i in present else jnp.zeros_like(x) for i, x in enumerate(modalities)]
            values[present] = (padded or apply)(*inputs)

    def contribution(member):
        terms = []
        for present in filter(lambda present: member in present, values):
            without = values.get(present - {member})
            gain = values[present] if without is None else values[present] - without
            terms.append(gain / (count * math.comb(count - 1, len(present) - 1)))
        return functools.reduce(jnp.add, terms)

    return tuple(map(contribution, range(count)))


def _cross_entropy(outputs, labels):
    """The mean over examples, with the classes on the last axis."""
    chances = jax.nn.softmax(wide(outputs), axis=-1)
    chosen = jnp.take_along_axis(chances, labels[..., None], axis=-1)
    return -jnp.mean(jnp.log(jnp.maximum(chosen, _LEAST)))


def _discrepancy(scores):
    return jnp.exp(2 * (jnp.mean(scores) - scores))
