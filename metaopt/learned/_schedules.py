"""Learnable learning-rate schedules, over the fraction s = count / num_steps of the training.

    warmup_cosine     peak · s / w                                       while s < w,
                      peak · (f + (1 - f) (1 + cos(π (s - w) / (1 - w))) / 2)    after that
    log_linear        exp(linear interpolation of θ_0, ..., θ_{K-1}, at s = 0, 1/(K-1), ..., 1)

Both hold their last value beyond s = 1. Cosine: Loshchilov and Hutter 2017, arXiv:1608.03983, §3,
without restarts. The piecewise form in log space is the usual one of schedule search.
"""

import jax
import jax.numpy as jnp

from metaopt.core import checked
from metaopt.learned._hyperparameters import Learnable, log, log_odds


@checked
def warmup_cosine(peak: float, *, warmup: float = 0.05, final: float = 0.01) -> Learnable:
    """Linear warm-up from 0 to a peak, then a cosine down to a fraction of it; all three learned.

    At the initial values this is `optax.warmup_cosine_decay_schedule`.

    Args:
        peak: initial peak; learned in log space.
        warmup: initial fraction of the training spent warming up, in (0, 1); learned as log-odds.
        final: initial final value as a fraction of the peak, in (0, 1); learned as log-odds.

    Returns:
        A hyperparameter whose value is a schedule; its theta is `{"final", "peak", "warmup"}`.

    Raises:
        ValueError: if an argument is out of range; when the optimizer is built, without
            `num_steps`.
    """
    init = {
        "peak": log("warmup_cosine", "peak", peak),
        "warmup": log_odds("warmup_cosine", "warmup", warmup),
        "final": log_odds("warmup_cosine", "final", final),
    }

    def value(theta, num_steps):
        _require_num_steps("warmup_cosine", num_steps)
        peak, floor = jnp.exp(theta["peak"]), jax.nn.sigmoid(theta["final"])
        # With log-odds x, w = sigmoid(x) and 1 - w = sigmoid(-x): both stay positive.
        warm, rest = jax.nn.sigmoid(theta["warmup"]), jax.nn.sigmoid(-theta["warmup"])

        def schedule(count):
            s = count / jnp.asarray(num_steps, peak.dtype)
            phase = jnp.clip((s - warm) / rest, 0, 1)
            decayed = floor + (1 - floor) * (1 + jnp.cos(jnp.pi * phase)) / 2
            return peak * jnp.where(s < warm, s / warm, decayed)

        return schedule

    return Learnable(init, value)


@checked
def log_linear(*values: float) -> Learnable:
    """A schedule through K >= 2 positive values at equal distances, log-linear between them.

    Args:
        *values: initial values at s = 0, 1/(K-1), ..., 1; learned in log space.

    Returns:
        A hyperparameter whose value is a schedule; its theta is a tuple of K scalars.

    Raises:
        ValueError: if there are fewer than two values or one is not positive; when the optimizer is
            built, without `num_steps`.
    """
    if len(values) < 2:
        raise ValueError(f"log_linear: values={values} has fewer than two; use positive(...).")
    init = tuple(log("log_linear", "values", value) for value in values)

    def value(theta, num_steps):
        _require_num_steps("log_linear", num_steps)
        knots = jnp.stack(theta)

        def schedule(count):
            s = jnp.clip(count / jnp.asarray(num_steps, knots.dtype), 0, 1)
            # Hat functions, rather than a look-up: smooth in theta and cheap under `vmap`.
            position = s * (len(values) - 1)
            hats = jax.nn.relu(1 - jnp.abs(position - jnp.arange(len(values), dtype=knots.dtype)))
            return jnp.exp(jnp.sum(hats * knots))

        return schedule

    return Learnable(init, value)


def _require_num_steps(function, num_steps):
    if num_steps is None:
        raise ValueError(
            f"{function}: num_steps=None, but the schedule spans the training; "
            "pass optimizer(theta, num_steps=...)."
        )
