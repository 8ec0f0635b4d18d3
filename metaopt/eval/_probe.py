"""The probe: how good is `theta` when it trains new tasks for the whole horizon?

    probe(θ) = 1/(N T) Σ_i Σ_t normalise(ℓ_{i,t}(θ)),    i < N tasks,  t < T steps from scratch

No perturbation, no truncation. Windowed meta-losses can fall while this rises (truncation bias), so
the driver keeps the `theta` with the lowest probe.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt import tree
from metaopt.core import LearnedOptimizer, MetaLoss, TaskFamily, training


def probe(
    family: TaskFamily, learned: LearnedOptimizer, *, num_steps: int, num_tasks: int = 8
) -> MetaLoss:
    """Makes the function that measures `theta` on whole trainings of held-out tasks.

    A task whose loss or parameters turn non-finite is frozen; from then on, and for a non-finite
    loss itself, it counts with the normaliser's value for NaN.

    Args:
        family: where tasks come from.
        learned: the optimizer.
        num_steps: inner steps T, told to the optimizer too. Static.
        num_tasks: tasks N, vectorised. Static.

    Returns:
        A pure function `(theta, data, key) -> scalar`, finite for every `theta`, for the caller to
        compile. Use one key for all probes of a run: tasks and batches are then the same.

    Raises:
        ValueError: if a count is below 1.
    """
    for name, count in {"num_steps": num_steps, "num_tasks": num_tasks}.items():
        if count < 1:
            raise ValueError(f"probe: {name} must be at least 1, got {count}.")
    # The system reports the raw loss, so that divergence can be seen.
    raw = family._replace(normalise=lambda loss, task_params: loss)
    system = training(raw, learned)

    def one_task(theta, data, key: PRNGKeyArray) -> Float[Array, ""]:
        key_init, key_steps = jax.random.split(key)
        start = system.init(theta, data, key_init, num_steps=num_steps)

        def step(carry, index):
            state, alive = carry
            new, info = system.step(theta, state, data, jax.random.fold_in(key_steps, index))
            alive_loss = alive & jnp.isfinite(info.loss)
            loss = family.normalise(jnp.where(alive_loss, info.loss, jnp.nan), state.task_params)
            # Only the parameters: an optimizer's state may hold an infinity for a reason.
            alive = alive_loss & tree.all_finite(new.params)
            return (tree.where(alive, new, state), alive), loss

        _, losses = jax.lax.scan(step, (start, jnp.array(True)), jnp.arange(num_steps))
        return _mean(losses)

    def function(theta: Any, data: Any, key: PRNGKeyArray) -> Float[Array, ""]:
        keys = jax.random.split(key, num_tasks)
        return _mean(jax.vmap(lambda key: one_task(theta, data, key))(keys))

    return function


def _mean(losses):
    """Mean in float32 or wider, finite where a sum of the largest finite numbers would overflow."""
    wide = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    return jnp.nan_to_num(jnp.sum(wide / wide.size), nan=jnp.finfo(wide.dtype).max)
