"""Lyapunov exponent of inner training: how fast a small difference of states grows.

A tangent v of the parameters is pushed forward step by step, and scaled back each time:

    v ← J_t v,    r_t = log |v|,    v ← v / |v|;        λ(T) = 1/T Σ_{t ≤ T} r_t

J_t the derivative of step t in the state, |v| the length of the part that belongs to the state's
`params` (of all of it, where a state has no `params`). A backward pass through T steps multiplies
the same matrices, so λ T is the logarithm by which a meta-gradient can have grown: above 3 or so
backpropagation through T steps is dominated by the noise that inner training amplifies (Metz et
al. 2021, arXiv:2111.05803). Benettin et al. 1980, doi:10.1007/BF02128236.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import System


def lyapunov(
    system: System, theta: Any, data: Any, key: PRNGKeyArray, *, num_steps: int, horizon: Any = None
) -> Float[Array, "num_steps"]:
    """Growth of a random tangent of the parameters, step by step.

    Args:
        system: inner training.
        theta: meta-parameters.
        data: the pool.
        key: for the task, the tangent and the steps.
        num_steps: steps T. Static.
        horizon: the length of the trajectory that the system is told. Traced; None: `num_steps`.

    Returns:
        r_t of the module; its mean is the exponent λ, its sum the logarithm of the growth. A
        tangent that vanishes counts with the logarithm of the smallest normal number.

    Raises:
        ValueError: if `num_steps < 1`.
    """
    if num_steps < 1:
        raise ValueError(f"lyapunov: num_steps must be at least 1, got {num_steps}.")
    key_init, key_tangent, key_steps = jax.random.split(key, 3)
    state = system.init(theta, data, key_init, num_steps=num_steps if horizon is None else horizon)
    leaves, treedef = jax.tree.flatten(state)
    is_float = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]
    is_measured = [m for f, m in zip(is_float, _measured(state), strict=True) if f]

    def split(leaves):
        pairs = list(zip(is_float, leaves, strict=True))
        return [x for f, x in pairs if f], [x for f, x in pairs if not f]

    def step(carry, index):
        (floats, others), tangent = carry

        def advance(floats):
            numbers, rest = iter(floats), iter(others)
            merged = [next(numbers) if f else next(rest) for f in is_float]
            key_step = jax.random.fold_in(key_steps, index)
            new, _ = system.step(theta, treedef.unflatten(merged), data, key_step)
            return split(jax.tree.leaves(new))

        floats, tangent, others = jax.jvp(advance, (floats,), (tangent,), has_aux=True)
        tangent, growth = _normalised(tangent, is_measured)
        return ((floats, others), tangent), growth

    start = split(leaves)
    drawn = [
        jax.random.normal(jax.random.fold_in(key_tangent, index), x.shape, x.dtype) * measured
        for index, (x, measured) in enumerate(zip(start[0], is_measured, strict=True))
    ]
    tangent, _ = _normalised(drawn, is_measured)
    return jax.lax.scan(step, (start, tangent), jnp.arange(num_steps))[1]


def _measured(state) -> list[bool]:
    """Which leaves are disturbed at first, and whose tangents are measured.

    Constants of the state, such as a task's description, would keep a tangent from ever shrinking.
    """
    if not (hasattr(state, "params") and hasattr(state, "_replace")):
        return [True for _ in jax.tree.leaves(state)]
    nothing = jax.tree.map(lambda _: False, state)
    return jax.tree.leaves(nothing._replace(params=jax.tree.map(lambda _: True, state.params)))


def _normalised(tangent, is_measured):
    """A tangent of which the measured part has unit length, and the logarithm of its length."""
    pairs = zip(is_measured, tangent, strict=True)
    total = sum(jnp.sum(jnp.square(x.astype(float))) for measured, x in pairs if measured)
    norm = jnp.maximum(jnp.sqrt(total), jnp.finfo(jnp.result_type(float)).tiny)
    return [x / norm.astype(x.dtype) for x in tangent], jnp.log(norm)
