"""Gradients through random binary neurons, as functions that compose node by node.

    h ~ Bernoulli(s),    s = σ(a)
    straight-through     ∂h/∂a := s (1 − s), or 1
    score function       ĝᵢ = (hᵢ − sᵢ) (L − bᵢ),    bᵢ = E[(hᵢ − sᵢ)² L] / E[(hᵢ − sᵢ)²]
    times smooth         h = B √s,  B ~ Bernoulli(√s),    ∂h/∂a := (B + √s) ∂√s/∂a
    noisy rectifier      h = max(0, a + σ ε)

Bengio et al. 2013, arXiv:1308.3432; the score function is Williams 1992 (REINFORCE),
doi:10.1007/BF00992696, and bᵢ the constant baseline of least variance. The derivative of a neuron
times its smooth part is not printed there as it is here: B counts as √s in the backward pass, so
that the mean of ∂h/∂a is the derivative of the mean, s.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Scalar, checked


class BaselineState(NamedTuple):
    """Running averages.

    Attributes:
        weighted: of (hᵢ − sᵢ)² L.
        weights: of (hᵢ − sᵢ)².
    """

    weighted: Float[Array, " units"]
    weights: Float[Array, " units"]


class Baseline(NamedTuple):
    """What is subtracted from losses; take the value before the update with the same sample.

    Attributes:
        init: `(logits) -> state`, for one example's logits.
        value: `(state) -> baseline`, for each unit.
        update: `(state, logits, sample, losses) -> state`, with any leading axes of examples.
    """

    init: Callable[..., Any]
    value: Callable[..., Any]
    update: Callable[..., Any]


@checked
def straight_through(
    logits: Float[Array, "..."],
    key: PRNGKeyArray,
    *,
    slope: Literal["sigmoid", "identity"] = "sigmoid",
) -> Float[Array, "..."]:
    """Binary samples through which gradients pass as if nothing had been drawn: biased.

    Args:
        logits: a, finite.
        key: of the draw.
        slope: "sigmoid": ∂h/∂a := s (1 − s); "identity": 1, which points the same way for units
            alike but is several times too long. Static.

    Returns:
        0 or 1, in the dtype of the logits.
    """
    probs = jax.nn.sigmoid(logits)
    sample = jax.lax.stop_gradient(jax.random.bernoulli(key, probs).astype(logits.dtype))
    smooth = probs if slope == "sigmoid" else logits
    return sample + (smooth - jax.lax.stop_gradient(smooth))


@checked
def bernoulli_log_prob(
    logits: Float[Array, "..."], sample: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The log-probability of binary samples, unit by unit; its derivative is h − s.

    Args:
        logits: a.
        sample: h, 0 or 1; not differentiated.

    Returns:
        log p(h), of the same shape.
    """
    sign = jax.lax.stop_gradient(2 * sample - 1).astype(logits.dtype)
    return jax.nn.log_sigmoid(sign * logits)


@checked
def score_function(
    loss: Float[Array, "..."],
    log_prob: Float[Array, "... units"],
    *,
    baseline: Scalar | Float[Array, "..."] = 0.0,
) -> Float[Array, "..."]:
    """The loss, with the gradient that it has in expectation over what was drawn: unbiased.

    Its derivative is that of the loss itself plus (L − b) times that of the log-probability, so
    parameters that act on the loss directly and those that act through samples are served at once.

    Args:
        loss: L of each example.
        log_prob: of what was drawn for it, of independent units on the last axis.
        baseline: b for each unit, or a number; it must not depend on the sample. Traced.

    Returns:
        Numbers equal to `loss`.
    """
    advantage = jax.lax.stop_gradient(loss[..., None] - jnp.broadcast_to(baseline, log_prob.shape))
    score = log_prob - jax.lax.stop_gradient(log_prob)
    return loss + jnp.sum(advantage * score, axis=-1).astype(loss.dtype)


@checked
def optimal_baseline(*, decay: Scalar = 0.99) -> Baseline:
    """For each unit the constant baseline of least variance, by running averages.

    Args:
        decay: of the averages, in [0, 1). Traced.

    Returns:
        Functions; the value is 0 before the first update.

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """
    if not isinstance(decay, jax.core.Tracer) and not np.all((decay >= 0) & (decay < 1)):
        raise ValueError(f"optimal_baseline: decay must be in [0, 1), got {decay}.")

    def init(logits):
        dtype = jnp.promote_types(jnp.result_type(logits), jnp.float32)
        zeros = jnp.zeros(jnp.shape(logits), dtype)
        return BaselineState(zeros, zeros)

    def value(state):
        seen = state.weights > 0
        return jnp.where(seen, state.weighted / jnp.where(seen, state.weights, 1.0), 0.0)

    def update(state, logits, sample, losses):
        probs = jnp.broadcast_to(jax.nn.sigmoid(logits), jnp.shape(sample))
        weights = jax.lax.stop_gradient((sample - probs) ** 2).astype(state.weights.dtype)
        weighted = weights * jax.lax.stop_gradient(losses)[..., None].astype(weights.dtype)

        def moved(average, x):
            mean = x.reshape(-1, x.shape[-1]).mean(axis=0)
            return (decay * average + (1 - decay) * mean).astype(average.dtype)

        return BaselineState(moved(state.weighted, weighted), moved(state.weights, weights))

    return Baseline(init, value, update)


@checked
def stochastic_times_smooth(logits: Float[Array, "..."], key: PRNGKeyArray) -> Float[Array, "..."]:
    """Samples that are 0 or √s, of mean s = σ(a), with a derivative where they are 0, too.

    Args:
        logits: a.
        key: of the draw.

    Returns:
        h, in the dtype of the logits.
    """
    # √σ(a) without a root of 0.
    root = jnp.exp(0.5 * jax.nn.log_sigmoid(logits))
    drawn = jax.lax.stop_gradient(jax.random.bernoulli(key, root).astype(logits.dtype))
    return (drawn + (root - jax.lax.stop_gradient(root))) * root


@checked
def noisy_rectifier(
    inputs: Float[Array, "..."], key: PRNGKeyArray, *, sigma: Scalar = 1.0
) -> Float[Array, "..."]:
    """A rectifier behind normal noise: its gradient is 0 only where the noise was too low.

    Args:
        inputs: a.
        key: of the noise.
        sigma: scale of the noise, in units of the inputs. Traced.

    Returns:
        max(0, a + σ ε), in the dtype of the inputs.
    """
    noise = jax.random.normal(key, inputs.shape, inputs.dtype)
    return jax.nn.relu(inputs + jnp.asarray(sigma, inputs.dtype) * noise)
