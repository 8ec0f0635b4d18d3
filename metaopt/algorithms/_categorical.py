"""Categorical distributions as logits on the last axis, and means over the steps of episodes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def log_prob_of(
    logits: Float[Array, "*batch actions"], actions: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probabilities of the actions."""
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]


def of_actions(
    x: Float[Array, "*batch actions n"], actions: Int[Array, "*batch"]
) -> Float[Array, "*batch n"]:
    """What belongs to the actions that were taken."""
    return jnp.take_along_axis(x, actions[..., None, None], axis=-2)[..., 0, :]


def entropy(logits: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Of every distribution."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def divergence(p: Float[Array, "*batch n"], q: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """KL(p ‖ q), whose derivative by the logits of q is q − p."""
    log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def mean_over(each: Float[Array, "*batch"], active: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """The mean over the steps that count."""
    return jnp.sum(jnp.where(active, each, 0)) / jnp.sum(active)
