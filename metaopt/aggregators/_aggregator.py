"""What an aggregator is: from the gradients of several objectives to one.

    J = (g₁, ..., g_m)ᵀ,    G = J Jᵀ,    A(J) = Jᵀ w(G)

J is a *Jacobian tree*: the parameters' tree with a leading axis m, one row per objective. Most
rules only choose weights from the m x m Gramian G, so that everything that is solved is small;
others, such as sign dropout, see J itself. Quinton and Rey 2024, arXiv:2406.16232, §2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import checked

# Larger entries are divided by before they are squared: 1e30² is no float32.
_LARGE = 1e8


class Aggregator(NamedTuple):
    """Several gradients to one.

    Attributes:
        aggregate: `(jacobian, key=None) -> gradient`, a tree like the parameters and in the dtypes
            of the Jacobian. Rules that draw need the key, the others ignore it.
        weights: `(gramian, key=None) -> weights` with gradient = Jᵀ weights; None for a rule that
            is no such combination.
    """

    aggregate: Callable[..., PyTree]
    weights: Callable[..., Float[Array, " m"]] | None


class AggregateState(NamedTuple):
    """The key that the next update draws from."""

    key: PRNGKeyArray


@checked
def by_gramian(weights: Callable[..., Float[Array, " m"]]) -> Aggregator:
    """The aggregator of a rule that chooses weights from the Gramian.

    Args:
        weights: `(gramian, key=None) -> weights`. For entries so large that their squares might
            overflow it is given the Gramian of a smaller multiple of the Jacobian.

    Returns:
        An aggregator, differentiable wherever `weights` is.
    """

    def aggregate(jacobian, key=None):
        scale = _scale(jacobian)
        return combine(weights(gramian(jax.tree.map(lambda x: x / scale, jacobian)), key), jacobian)

    return Aggregator(aggregate, weights)


def gramian(jacobian: PyTree) -> Float[Array, "m m"]:
    """Inner products of all pairs of rows, in float32 at least.

    Args:
        jacobian: the parameters' tree with a leading axis m.

    Returns:
        G = J Jᵀ.

    Raises:
        ValueError: if leaves have no leading axis of one common length.
    """
    count = num_rows(jacobian)
    rows = [wide(x).reshape(count, -1) for x in jax.tree.leaves(jacobian)]
    products = [jnp.matmul(x, x.T, precision="highest") for x in rows]
    return sum(products[1:], start=products[0])


def combine(weights: Float[Array, " m"], jacobian: PyTree) -> PyTree:
    """Jᵀ w: a combination of rows, computed in float32 at least, in the dtypes of the Jacobian.

    Args:
        weights: one number per row.
        jacobian: the parameters' tree with a leading axis m.

    Returns:
        A tree like the parameters.
    """

    def leaf(x):
        return jnp.tensordot(weights, wide(x), 1, precision="highest").astype(x.dtype)

    return jax.tree.map(leaf, jacobian)


@checked
def value_and_jacobian(losses: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Like `jax.value_and_grad`, for a vector of losses.

    Args:
        losses: `(params, ...) -> losses [m]`, or `(losses, aux)`.
        has_aux: whether `losses` returns more than losses. Static.

    Returns:
        `(params, ...) -> (losses, jacobian)`, or `((losses, aux), jacobian)`. The forward pass is
        taken once, the backward pass for all m rows together.
    """

    def function(params, *args, **kwargs):
        value, pullback, *aux = jax.vjp(
            lambda params: losses(params, *args, **kwargs), params, has_aux=has_aux
        )
        if jnp.ndim(value) != 1:
            raise ValueError(
                "value_and_jacobian: losses must return a vector, one number per objective, got "
                f"the shape {jnp.shape(value)}; stack scalars by jnp.stack."
            )
        (jacobian,) = jax.vmap(pullback)(jnp.eye(len(value), dtype=value.dtype))
        return ((value, *aux) if has_aux else value), jacobian

    return function


@checked
def aggregate(aggregator: Aggregator, *, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """An aggregator as the first stage of an optax chain; `update` is given a Jacobian tree.

    `optax.chain(aggregate(upgrad()), optax.adam(1e-3))` is called as any other optimizer, with
    `init(params)` and `update(jacobian, state, params)`; `optax.experimental.aggregating.process`
    takes it too.

    Args:
        aggregator: of this package, or one's own.
        seed: of the key that rules which draw take. Static.

    Returns:
        A transformation from Jacobian trees to trees like the parameters.
    """

    def init(params):
        del params
        return AggregateState(jax.random.key(seed))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        key_next, key_now = jax.random.split(state.key)
        return aggregator.aggregate(updates, key_now), AggregateState(key_next)

    return optax.GradientTransformationExtraArgs(init, update)


def num_rows(jacobian: PyTree) -> int:
    """The number of objectives m."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(jacobian)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(
            "aggregators: all leaves of a Jacobian need a leading axis of one length, one row per "
            f"objective, got the shapes {shapes}; make it by value_and_jacobian."
        )
    return shapes[0][0]


def wide(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same numbers in float32 at least."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _scale(jacobian):
    """What to divide a Jacobian by before squaring it: 1 unless its entries are huge."""
    num_rows(jacobian)
    largest = [jnp.max(jnp.abs(wide(x)), initial=0.0) for x in jax.tree.leaves(jacobian)]
    ratio = jax.lax.stop_gradient(jnp.max(jnp.stack(jnp.broadcast_arrays(*largest)))) / _LARGE
    return jnp.maximum(ratio, 1.0)
