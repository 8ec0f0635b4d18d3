"""Augmentations that change the gradient and leave the loss: family -> family; they compose.

    es_gradient          ĝ = 1/(2Nσ) Σᵢ [L(p + σεᵢ) - L(p - σεᵢ)] εᵢ,    εᵢ ~ N(0, I)
    normalised_gradient  ĝ = g / ‖g‖, the norm being that of all tensors together
    random_directions    ĝ = Σᵢ (g·vᵢ) vᵢ or Σᵢ sign(g·vᵢ) vᵢ, the vᵢ uniform on the unit sphere

Metz et al. 2022, arXiv:2211.09760 (VeLO), and its public code. Whatever differentiates the loss by
`params` gets ĝ: the inner optimizer, and also a meta-gradient that goes through the reported loss.
Evolution strategies differentiate nothing and are not concerned; backpropagation through the unroll
needs `gradient="reverse"`, for the Jacobian of ĝ is not symmetric.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from metaopt import tree
from metaopt.core import Scalar, TaskFamily, checked
from metaopt.data._check import at_least_one, ordered
from metaopt.tasks._quadratic import log_uniform

# Added to squared norms, so that gradients below 1e-12 fade to zero. The derivative at zero has its
# power of -3/2, which float32 must hold.
_TINY = 1e-24


class ESGradientTask(NamedTuple):
    """A task whose gradients are estimated from losses.

    Attributes:
        inner: the wrapped family's `task_params`.
        sigma: σ, the perturbation scale.
    """

    inner: Any
    sigma: Float[Array, ""]


@checked
def es_gradient(
    family: TaskFamily, *, sigma: Scalar | tuple[Scalar, Scalar] = 0.01, num_pairs: int = 4
) -> TaskFamily:
    """Replaces the gradient by an estimate from antithetic pairs of losses.

    Both losses of a pair see the batch and the randomness of the step; the perturbations are new at
    every call. The estimate has the gradient of the σ-smoothed loss as its mean.

    Args:
        family: the family to augment.
        sigma: σ, in units of the parameters; a pair (low, high) draws it per task, log-uniformly.
            VeLO's range is (1e-3, 0.1). Traced.
        num_pairs: pairs N; VeLO's are 1, 2, 4, 8 and 16. Static.

    Returns:
        A family with `task_params` of type `ESGradientTask`.

    Raises:
        ValueError: if `num_pairs < 1`, a scale is not positive or the pair is not in order.
    """
    at_least_one("es_gradient", num_pairs=num_pairs)
    low, high = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    ordered("es_gradient", low=low, high=high)

    def sample(key):
        key_inner, key_sigma = jax.random.split(key)
        return ESGradientTask(family.sample(key_inner), log_uniform(key_sigma, low=low, high=high))

    def estimate(value, params, task_params, key):
        def one_pair(key):
            eps = tree.sample_normal(params, key)

            def at(sign):
                scale = sign * task_params.sigma
                moved = jax.tree.map(lambda p, e: p + scale * e, params, eps)
                return value(tree.cast_like(moved, params))

            slope = (at(1) - at(-1)) / (2 * task_params.sigma)
            return jax.tree.map(lambda e: slope * e, eps)

        pairs = jax.vmap(one_pair)(jax.random.split(key, num_pairs))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), pairs)

    inner = _on_inner(family)._replace(sample=sample)
    return inner._replace(loss=_with_gradient(inner.loss, estimate))


@checked
def normalised_gradient(family: TaskFamily) -> TaskFamily:
    """Divides the gradient by its norm; a gradient of zero stays zero.

    Args:
        family: the family to augment.

    Returns:
        A family with the `task_params` of `family`.
    """

    def normalised(value, params, task_params, key):
        del task_params, key
        return _unit(jax.grad(value)(params))

    return family._replace(loss=_with_gradient(family.loss, normalised))


@checked
def random_directions(
    family: TaskFamily, *, num_directions: int, sign: bool = False, orthogonal: bool = False
) -> TaskFamily:
    """Keeps the gradient's components along random directions, new at every call.

    Args:
        family: the family to augment.
        num_directions: d; VeLO's are log-uniform from 1 to 1024. Static.
        sign: whether components are replaced by their signs. Static.
        orthogonal: whether directions are orthonormal, so that ĝ is a projection, and is g where
            they span the space; else they are drawn independently, as in VeLO, and ĝ is d/n · g in
            the mean over n parameters. Costs a matrix of n rows and d columns. Static.

    Returns:
        A family with the `task_params` of `family`.

    Raises:
        ValueError: if `num_directions < 1`.
    """
    at_least_one("random_directions", num_directions=num_directions)

    def amount(component):
        return jnp.sign(component) if sign else component

    def independent(grads, key):
        def add(total, index):
            v = _unit(tree.sample_normal(grads, jax.random.fold_in(key, index)))
            along = amount(_dot(grads, v))
            return jax.tree.map(lambda t, v: t + along * v, total, v), None

        # One direction at a time: all of them at once would be that many copies of the parameters.
        zero = jax.tree.map(jnp.zeros_like, grads)
        return jax.lax.scan(add, zero, jnp.arange(num_directions))[0]

    def projected(grads, key):
        flat, unravel = ravel_pytree(grads)
        shape = (flat.size, min(num_directions, flat.size))
        basis, _ = jnp.linalg.qr(jax.random.normal(key, shape, flat.dtype))
        return unravel(basis @ amount(basis.T @ flat))

    def kept(value, params, task_params, key):
        del task_params
        grads = jax.tree.map(_at_least_float32, jax.grad(value)(params))
        return (projected if orthogonal else independent)(grads, key)

    return family._replace(loss=_with_gradient(family.loss, kept))


def _on_inner(family: TaskFamily) -> TaskFamily:
    """The family for `task_params` that hold its own as `inner`."""
    return TaskFamily(
        sample=family.sample,
        init=lambda task_params, key: family.init(task_params.inner, key),
        batch=lambda data, task_params, key: family.batch(data, task_params.inner, key),
        loss=lambda params, task_params, batch, key: family.loss(
            params, task_params.inner, batch, key
        ),
        normalise=lambda loss, task_params: family.normalise(loss, task_params.inner),
    )


def _with_gradient(loss: Callable, gradient: Callable) -> Callable:
    """A loss of the same value with another gradient by `params`.

    Derivatives by task and batch are those of the loss, and the new gradient can be differentiated
    itself, in either mode.

    Args:
        loss: as in `TaskFamily`.
        gradient: `(value, params, task_params, key) -> grads`, with `value` the loss as a function
            of `params` alone.
    """

    def changed(params, task_params, batch, key):
        key_loss, key_gradient = jax.random.split(key)
        fixed = jax.lax.stop_gradient(params)
        result, aux = loss(fixed, task_params, batch, jax.random.clone(key_loss))
        impl = jax.random.key_impl(key)
        # As raw numbers, which a rule may use more than once.
        keys = (jax.random.key_data(key_loss), jax.random.key_data(key_gradient))

        @jax.custom_jvp
        def zero(params, fed):
            del params, fed
            return jnp.zeros((), result.dtype)

        @zero.defjvp
        def rule(primals, tangents):
            params, (task_params, batch, (data_loss, data_gradient)) = primals

            def value(params):
                key_loss = jax.random.wrap_key_data(data_loss, impl=impl)
                return loss(params, task_params, batch, key_loss)[0]

            key_gradient = jax.random.wrap_key_data(data_gradient, impl=impl)
            grads = gradient(value, params, task_params, key_gradient)
            return jnp.zeros((), result.dtype), _dot(grads, tangents[0]).astype(result.dtype)

        return result + zero(params, (task_params, batch, keys)), aux

    return changed


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _dot(x: Any, y: Any) -> Array:
    products = jax.tree.map(lambda a, b: jnp.sum(_at_least_float32(a) * b), x, y)
    return jnp.asarray(sum(jax.tree.leaves(products)))


def _unit(grads: Any) -> Any:
    scale = jax.lax.rsqrt(_dot(grads, grads) + _TINY)
    return jax.tree.map(lambda g: _at_least_float32(g) * scale, grads)
