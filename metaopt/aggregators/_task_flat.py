"""Flat regions of every task: gradients of losses and of their sharpness, aggregated apart.

    gᵢ = ∇Lᵢ(w, hᵢ),    sᵢ = ∇Lᵢ(w + ρ gᵢ/|gᵢ|, hᵢ + ρ gᵢ'/|gᵢ'|)
    shared: A({gᵢ}) + A({sᵢ - gᵢ}),    head i: sᵢ'

with gᵢ' the gradient of head i. sᵢ is the gradient of sharpness-aware minimisation for task i, and
sᵢ - gᵢ its part that leads to flat regions, whose conflicts are resolved on their own. Phan et al.
2022, arXiv:2211.13723. Lengths of the shared parameters and of each head are taken apart, with one
ρ for both. ρ = 0 is the aggregator alone, and with the mean this is sharpness-aware minimisation of
several tasks.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.aggregators._aggregator import Aggregator
from metaopt.aggregators._gradnorm import row_lengths
from metaopt.aggregators._gramian import check_at_least
from metaopt.core import Scalar, checked


@checked
def task_flat(
    losses: Sequence[Callable[..., Float[Array, ""]]],
    aggregator: Aggregator,
    *,
    rho: Scalar = 0.05,
) -> Callable:
    """Gradients that lead all tasks to flat regions.

    Args:
        losses: for each task `(shared, head, batch) -> scalar`.
        aggregator: A, for the shared parameters.
        rho: length of the perturbations, in units of the parameters. Traced.

    Returns:
        `(shared, heads, batch, key=None) -> (losses [m], (shared_grad, head_grads))`, with a
        sequence of heads and a tuple of their gradients. All tasks see the same batch; the key is
        for aggregators that draw.

    Raises:
        ValueError: if there are no losses or `rho` is negative; when traced, if the number of heads
            is another one.
    """
    check_at_least("task_flat", 0, rho=rho)
    if not losses:
        raise ValueError("task_flat: losses is empty; give one function per task.")

    def function(shared, heads, batch, key=None):
        if len(heads) != len(losses):
            raise ValueError(
                f"task_flat: {len(heads)} heads for {len(losses)} losses; give one for each."
            )
        found = [_task(loss, shared, head, batch) for loss, head in zip(losses, heads, strict=True)]
        values, plain, sharp, head_grads = zip(*found, strict=True)
        plain = jax.tree.map(lambda *x: jnp.stack(x), *plain)
        sharp = jax.tree.map(lambda *x: jnp.stack(x), *sharp)
        flat = jax.tree.map(jnp.subtract, sharp, plain)
        key_plain, key_flat = (None, None) if key is None else jax.random.split(key)
        towards_low = aggregator.aggregate(plain, key_plain)
        towards_flat = aggregator.aggregate(flat, key_flat)
        shared_grad = jax.tree.map(jnp.add, towards_low, towards_flat)
        return jnp.stack(values), (shared_grad, head_grads)

    def _task(loss, shared, head, batch):
        value, (g_shared, g_head) = jax.value_and_grad(loss, (0, 1))(shared, head, batch)
        above = _ascended(shared, g_shared, rho), _ascended(head, g_head, rho)
        s_shared, s_head = jax.grad(loss, (0, 1))(*above, batch)
        return value, g_shared, s_shared, s_head

    return function


def _ascended(params, grads, rho):
    """A step of length rho along the gradient; none where that is zero."""
    (length,) = row_lengths(jax.tree.map(lambda g: g[None], grads))
    size = rho / jnp.where(length > 0, length, 1.0)
    return jax.tree.map(lambda p, g: (p + size * g).astype(p.dtype), params, grads)
