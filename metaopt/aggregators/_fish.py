"""Fish: small steps on one domain after the other make the domains' gradients agree.

    φ ← params;  for S domains in random order:  φ ← inner step on a batch of the domain
    update = ε (φ - params)

It is Reptile with a domain in every inner step. For gradient descent of rate a the mean over orders
of φ - params is -a Σᵢ Gᵢ + a² (S(S-1)/4) ∇ mean_{i≠j} Gᵢ·Gⱼ + O(a³): a step on all domains, and one
that raises the inner products of their gradients. Shi et al. 2022 (ICLR), arXiv:2104.09937,
algorithm 1. Differs from the paper: the released code divides ε by S, which is left to the caller.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import Batch, Params, Scalar, checked


class Fish(NamedTuple):
    """A step over several domains.

    Attributes:
        init: `(params) -> state`, that of the inner optimizer.
        update: `(params, state, batch, key) -> (updates, state, losses)`, where `batch` has the
            domain axis first, `updates` go to `optax.apply_updates` and `losses` are those before
            each inner step, in the order of the steps.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[PyTree, Any, Float[Array, " domains"]]]


@checked
def fish(
    loss: Callable[..., Float[Array, ""]],
    inner_opt: optax.GradientTransformation,
    *,
    meta_lr: Scalar = 0.05,
    num_domains: int | None = None,
    carry_state: bool = True,
) -> Fish:
    """Reptile over domains.

    Args:
        loss: `(params, batch) -> scalar` of a batch of one domain.
        inner_opt: such as `optax.adam(1e-4)` or `optax.sgd(1e-3, momentum=0.9)`.
        meta_lr: ε, the part of the way that is taken; the paper has 0.01 to 0.1. Traced.
        num_domains: S, how many domains of those in the batch take part, drawn without
            replacement; None: all. Static.
        carry_state: whether the inner optimizer goes on where it stopped, or begins anew. Static.

    Returns:
        The step, differentiable through all inner ones.

    Raises:
        ValueError: if `num_domains` is below 1 or, when traced, above the number of domains.
    """
    if num_domains is not None and num_domains < 1:
        raise ValueError(f"fish: num_domains must be at least 1, got {num_domains}.")
    opt = optax.with_extra_args_support(inner_opt)

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = opt.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    def update(params, state, batch, key):
        order = _order(batch, num_domains, key)
        batches = jax.tree.map(lambda x: jnp.take(x, order, axis=0), batch)
        start = state if carry_state else opt.init(params)
        (moved, state), losses = jax.lax.scan(step, (params, start), batches)
        updates = jax.tree.map(lambda x, y: (meta_lr * (y - x)).astype(x.dtype), params, moved)
        return updates, state, losses

    return Fish(opt.init, update)


@checked
def inner_product_gradient(
    loss: Callable[..., Float[Array, ""]],
) -> Callable[[Params, Batch], PyTree]:
    """The exact gradient of what Fish raises, at the price of a Hessian product for each domain.

    Args:
        loss: `(params, batch) -> scalar` of a batch of one domain.

    Returns:
        `(params, batch) -> ∇ mean_{i≠j} Gᵢ·Gⱼ = 2/(S(S-1)) Σᵢ Hᵢ Σ_{j≠i} Gⱼ`, where `batch` has the
        domain axis first.
    """

    def function(params, batch):
        grads = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
        count = len(jax.tree.leaves(grads)[0])
        others = jax.tree.map(lambda g: jnp.sum(g, axis=0, keepdims=True) - g, grads)

        def hessian_product(batch, vector):
            return jax.jvp(lambda params: jax.grad(loss)(params, batch), (params,), (vector,))[1]

        products = jax.vmap(hessian_product)(batch, others)
        factor = 2 / (count * (count - 1))
        return jax.tree.map(lambda x: factor * jnp.sum(x, axis=0), products)

    return function


def _order(batch: Batch, num_domains: int | None, key: PRNGKeyArray):
    """The domains of a step."""
    count = len(jax.tree.leaves(batch)[0])
    if num_domains is not None and num_domains > count:
        raise ValueError(
            f"fish: num_domains={num_domains} of the {count} domains in the batch; give more "
            "domains, or None for all."
        )
    return jax.random.permutation(key, count)[:num_domains]
