"""Trainings longer than those a rule was meta-trained for: fewer steps, on averages.

    k = ⌈N / max_steps⌉,    one step of the rule, planned for ⌊N / k⌋, on averages over k steps of
    g + weight_decay · p    and    l + weight_decay · Σ p²

Metz et al. 2022, arXiv:2211.09760, in the form that the weights were released for. The gradient of
the decay is the published one: half of that of its loss.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._features import shared_dtype, working_dtype
from metaopt.learned._scheduled import need_params_and_loss, need_steps


class LongRunsState(NamedTuple):
    """Sums since the last step of the rule, how many, and the rule's own state."""

    count: Int[Array, ""]
    grads: PyTree
    loss: Float[Array, ""]
    inner: Any


@checked
def long_runs(
    learned: LearnedOptimizer, *, max_steps: int = 150_000, weight_decay: Scalar | None = None
) -> LearnedOptimizer:
    """The same optimizer for any number of steps, if need be with weight decay.

    Args:
        learned: any learned optimizer; `theta` is its own.
        max_steps: the most steps that it takes; below, it is left alone. Static.
        weight_decay: added to gradient and loss, from 1e-6 on; None: nothing is. Traced.

    Returns:
        A learned optimizer that needs `num_steps`, the parameters and `value=`, the training loss.
        Only where a static `num_steps` is at most `max_steps` does it save the sum of gradients,
        one number per parameter. Updates between steps of the rule are zero.

    Raises:
        ValueError: if `max_steps` is below 1; in `optimizer` and `update`, if what it needs is
            missing.
    """
    if max_steps < 1:
        raise ValueError(f"long_runs: max_steps={max_steps} is below 1; use e.g. 150_000.")

    def optimizer(theta, *, num_steps=None):
        num_steps = need_steps("long_runs", num_steps)
        every = -(-num_steps // max_steps)
        if isinstance(num_steps, int | np.integer) and every <= 1:
            rule = learned.optimizer(theta, num_steps=num_steps)
            return _with_decay(optax.with_extra_args_support(rule), weight_decay)
        every = jnp.maximum(every, 1)
        rule = learned.optimizer(theta, num_steps=num_steps // every)
        return _with_decay(_averaged(optax.with_extra_args_support(rule), every), weight_decay)

    return LearnedOptimizer(learned.init, optimizer)


def _with_decay(rule, weight_decay) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, *, value=None, **extra):
        need_params_and_loss("long_runs", params, value)
        if weight_decay is not None:
            norms = [jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params)]
            value = value + weight_decay * sum(norms)
            updates = jax.tree.map(
                lambda g, p: (g + weight_decay * p).astype(g.dtype), updates, params
            )
        return rule.update(updates, state, params, value=value, **extra)

    return optax.GradientTransformationExtraArgs(rule.init, update)


def _averaged(rule, every) -> optax.GradientTransformationExtraArgs:
    def init(params):
        sums = jax.tree.map(lambda p: jnp.zeros_like(p, working_dtype(p)), params)
        loss = jnp.zeros((), shared_dtype(params))
        return LongRunsState(jnp.zeros((), jnp.int32), sums, loss, rule.init(params))

    def update(updates, state, params=None, *, value=None, **extra):
        grads = jax.tree.map(lambda s, g: s + g.astype(s.dtype), state.grads, updates)
        loss = state.loss + jnp.asarray(value, state.loss.dtype)
        count = state.count + 1

        def step(_):
            mean = jax.tree.map(lambda s, g: (s / every).astype(g.dtype), grads, updates)
            new, inner = rule.update(mean, state.inner, params, value=loss / every, **extra)
            none, no_grads, no_loss = jax.tree.map(jnp.zeros_like, (count, grads, loss))
            return new, LongRunsState(none, no_grads, no_loss, inner)

        def wait(_):
            still = jax.tree.map(jnp.zeros_like, params)
            return still, LongRunsState(count, grads, loss, state.inner)

        return jax.lax.cond(count >= every, step, wait, None)

    return optax.GradientTransformationExtraArgs(init, update)
