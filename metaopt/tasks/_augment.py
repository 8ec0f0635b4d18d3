"""Augmentations of a task distribution: family -> family; they compose.

    rescale         optimise v, where the network's parameters are w = s·v and v₀ = w₀ / s
    reduced_batch   a random share of every batch
    gradient_noise  the gradient plus Gaussian noise, the loss unchanged
    scaled_init     initial parameters times a random number, the loss function unchanged
    bfloat16        parameters and batches in bfloat16

Metz et al. 2022, arXiv:2211.09760 (VeLO), and its public code. What distinguishes the augmented
tasks, the scale or the share, is drawn per task and traced, so one program serves them all.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from metaopt import tree
from metaopt.core import Scalar, TaskFamily, checked
from metaopt.data._check import above_zero, ordered
from metaopt.data._pool import num_examples
from metaopt.tasks._quadratic import log_uniform

Level = Literal["global", "tensor", "parameter"]


class RescaledTask(NamedTuple):
    """A task in rescaled parameters.

    Attributes:
        inner: the wrapped family's `task_params`.
        scale: s, with the structure of `params`; scalars unless the level is `"parameter"`.
    """

    inner: Any
    scale: Any


class ScaledInitTask(NamedTuple):
    """A task that starts elsewhere.

    Attributes:
        inner: the wrapped family's `task_params`.
        scale: what initial parameters are multiplied by.
    """

    inner: Any
    scale: Float[Array, ""]


class ReducedBatchTask(NamedTuple):
    """A task with smaller batches.

    Attributes:
        inner: the wrapped family's `task_params`.
        fraction: share of the batch in use.
    """

    inner: Any
    fraction: Float[Array, ""]


class GradientNoiseTask(NamedTuple):
    """A task with noisy gradients.

    Attributes:
        inner: the wrapped family's `task_params`.
        scale: standard deviation of the noise, per coordinate.
    """

    inner: Any
    scale: Float[Array, ""]


@checked
def rescale(
    family: TaskFamily, *, level: Level = "global", low: Scalar = 0.1, high: Scalar = 10.0
) -> TaskFamily:
    """Rescales the parameters: the optimizer moves v, the network sees w = s·v.

        v₀ = w₀ / s,    L'(v) = L(s·v),    dL'/dv = s · dL/dw,    ln s ~ U[ln low, ln high]

    The initial loss is unchanged; SGD with learning rate η on w is SGD with η / s² on v (global
    level). VeLO's ranges are 0.1..10, 1e-2..1e2 and 1e-3..1e3.

    Args:
        family: the family to augment.
        level: one s per task, per tensor or per parameter. Static.
        low: smallest scale. Traced.
        high: largest scale. Traced.

    Returns:
        A family with `task_params` of type `RescaledTask`; `params` keep structure and dtypes.

    Raises:
        ValueError: if `level` is unknown, or not `0 < low <= high`.
    """
    if level not in get_args(Level):
        raise ValueError(f"rescale: level={level!r} is unknown; choose from {get_args(Level)}.")
    ordered("rescale", low=low, high=high)

    def sample(key):
        key_inner, key_scale = jax.random.split(key)
        inner = family.sample(key_inner)
        # Shapes only: the key that `init` gets here draws nothing.
        params = jax.eval_shape(family.init, inner, key_scale)
        leaves, treedef = jax.tree.flatten(params)
        if level == "global":
            scales = [log_uniform(key_scale, low=low, high=high)] * len(leaves)
        else:
            keys = jax.random.split(key_scale, len(leaves))
            shapes = [leaf.shape if level == "parameter" else () for leaf in leaves]
            scales = [
                log_uniform(k, s, low=low, high=high) for k, s in zip(keys, shapes, strict=True)
            ]
        return RescaledTask(inner, jax.tree.unflatten(treedef, scales))

    def init(task_params, key):
        params = family.init(task_params.inner, key)
        return tree.cast_like(jax.tree.map(jnp.divide, params, task_params.scale), params)

    def batch(data, task_params, key):
        return family.batch(data, task_params.inner, key)

    def loss(params, task_params, batch, key):
        scaled = jax.tree.map(jnp.multiply, params, task_params.scale)
        return family.loss(tree.cast_like(scaled, params), task_params.inner, batch, key)

    return TaskFamily(sample, init, batch, loss, _normalise_inner(family))


@checked
def scaled_init(family: TaskFamily, *, low: Scalar = 0.5, high: Scalar = 2.0) -> TaskFamily:
    """Multiplies initial parameters by a number per task; unlike `rescale`, the loss changes.

    Stands for the random initialisers of VeLO's tasks.

    Args:
        family: the family to augment.
        low: smallest factor. Traced.
        high: largest factor; log-uniform between the two. Traced.

    Returns:
        A family with `task_params` of type `ScaledInitTask`.

    Raises:
        ValueError: if not `0 < low <= high`.
    """
    ordered("scaled_init", low=low, high=high)

    def sample(key):
        key_inner, key_scale = jax.random.split(key)
        return ScaledInitTask(family.sample(key_inner), log_uniform(key_scale, low=low, high=high))

    def init(task_params, key):
        params = family.init(task_params.inner, key)
        return tree.cast_like(jax.tree.map(lambda x: task_params.scale * x, params), params)

    def batch(data, task_params, key):
        return family.batch(data, task_params.inner, key)

    def loss(params, task_params, batch, key):
        return family.loss(params, task_params.inner, batch, key)

    return TaskFamily(sample, init, batch, loss, _normalise_inner(family))


@checked
def reduced_batch(family: TaskFamily, *, low: Scalar = 0.01, high: Scalar = 1.0) -> TaskFamily:
    """Trains on a random share of every batch: noisier gradients from the same shapes.

    Of the batch's B rows, row i is replaced by row i mod m, with m = ⌈fraction · B⌉ and
    fraction ~ U[low, high]. The batch thus holds m distinct draws, each ⌊B/m⌋ or ⌈B/m⌉ times: a
    mean over it is the mean over m examples exactly where m divides B, slightly uneven elsewhere.

    Args:
        family: the family to augment; its batches are arrays with an equal leading axis.
        low: smallest share. Traced.
        high: largest share, at most 1. Traced.

    Returns:
        A family with `task_params` of type `ReducedBatchTask`.

    Raises:
        ValueError: if not `0 < low <= high <= 1`; when traced, if batches hold no arrays.
    """
    ordered("reduced_batch", low=low, high=high)
    if not isinstance(high, Tracer) and high > 1:
        raise ValueError(f"reduced_batch: high={high} is above 1, the whole batch.")

    def sample(key):
        key_inner, key_fraction = jax.random.split(key)
        fraction = jax.random.uniform(key_fraction, minval=low, maxval=high)
        return ReducedBatchTask(family.sample(key_inner), fraction)

    def init(task_params, key):
        return family.init(task_params.inner, key)

    def batch(data, task_params, key):
        full = family.batch(data, task_params.inner, key)
        size = num_examples("reduced_batch", full)
        kept = jnp.ceil(task_params.fraction * size).astype(jnp.int32)
        rows = jnp.arange(size, dtype=jnp.int32) % jnp.clip(kept, 1, size)
        return jax.tree.map(lambda x: x[rows], full)

    def loss(params, task_params, batch, key):
        return family.loss(params, task_params.inner, batch, key)

    return TaskFamily(sample, init, batch, loss, _normalise_inner(family))


@checked
def gradient_noise(
    family: TaskFamily, *, scale: Scalar | tuple[Scalar, Scalar] = 0.01
) -> TaskFamily:
    """Adds Gaussian noise to the gradient of the loss and nothing to its value.

        L'(params) = L(params) + scale · ε · (params - sg(params)),    ε ~ N(0, I)

    with sg the stop-gradient. The noise is new at every call and does not depend on `params`.

    Args:
        family: the family to augment.
        scale: standard deviation per coordinate, in units of the gradient; a pair (low, high)
            draws it per task, log-uniformly. Traced.

    Returns:
        A family with `task_params` of type `GradientNoiseTask`.

    Raises:
        ValueError: if a scale is not positive or the pair is not in order.
    """
    if isinstance(scale, tuple):
        low, high = scale
    else:
        low = high = scale
        above_zero("gradient_noise", scale=scale)
    ordered("gradient_noise", low=low, high=high)

    def sample(key):
        key_inner, key_scale = jax.random.split(key)
        return GradientNoiseTask(
            family.sample(key_inner), log_uniform(key_scale, low=low, high=high)
        )

    def init(task_params, key):
        return family.init(task_params.inner, key)

    def batch(data, task_params, key):
        return family.batch(data, task_params.inner, key)

    def loss(params, task_params, batch, key):
        key_inner, key_noise = jax.random.split(key)
        value, aux = family.loss(params, task_params.inner, batch, key_inner)
        zero = jax.tree.map(lambda x: x - jax.lax.stop_gradient(x), params)
        noise = tree.sample_normal(params, key_noise)
        terms = jax.tree.map(lambda e, z: (e * z).sum(), noise, zero)
        term = task_params.scale * sum(jax.tree.leaves(terms))
        return value + term.astype(value.dtype), aux

    return TaskFamily(sample, init, batch, loss, _normalise_inner(family))


@checked
def bfloat16(family: TaskFamily) -> TaskFamily:
    """Stores parameters and floating-point batches in bfloat16; the loss is float32.

    How much of the computation is in bfloat16 is up to the family's promotions: products of
    parameters and batches are, parts that read float32 `task_params` are not.

    Args:
        family: the family to augment.

    Returns:
        A family with the `task_params` of `family`.
    """

    def init(task_params, key):
        return _to_bfloat16(family.init(task_params, key))

    def batch(data, task_params, key):
        return _to_bfloat16(family.batch(data, task_params, key))

    def loss(params, task_params, batch, key):
        value, aux = family.loss(params, task_params, batch, key)
        return value.astype(jnp.float32), aux

    return family._replace(init=init, batch=batch, loss=loss)


def _to_bfloat16(values):
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, values
    )


def _normalise_inner(family):
    return lambda loss, task_params: family.normalise(loss, task_params.inner)
