"""The small network that per-parameter rules apply to every entry of every tensor.

    h_0 = W_0ᵀ x + b_0,    h_{i+1} = W_{i+1}ᵀ relu(h_i) + b_{i+1}

`theta` is `{"linear_0": {"w": [in, out], "b": [out]}, "linear_1": ...}`. Features lead, so a layer
is one `[out, in] x [in, entries]` product. The first layer is left to the rule: a feature that is
constant over a tensor, its rows or its columns is worth one product there, not one per entry.

Planes of features are many times the size of their tensor. For large tensors, small networks are
therefore written out as one product after the other, which compiles into a loop over the entries
that keeps features and layers in registers; on CPUs larger networks, and derivatives, go through
the network in blocks whose planes fit a core's cache. Either way features are computed twice: for
their mean squares, and for the network.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.learned._features import mean_square, normalise


def network_init(key: PRNGKeyArray, sizes: tuple[int, ...]) -> PyTree:
    """Weights normal, of scale 1/√fan_in and truncated at two standard deviations; biases 0.

    The scale is not corrected for the truncation: the standard deviation is 0.88/√fan_in.
    """
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"linear_{i}": {
            "w": jax.random.truncated_normal(keys[i], -2, 2, (fan_in, fan_out)) * fan_in**-0.5,
            "b": jnp.zeros(fan_out),
        }
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    }


def hidden_sizes(name: str, hidden_size: int, hidden_layers: int) -> tuple[int, ...]:
    """Checks and returns the widths of the hidden layers."""
    if hidden_size < 1:
        raise ValueError(f"{name}: hidden_size={hidden_size} is below 1; use a positive width.")
    if hidden_layers < 1:
        raise ValueError(f"{name}: hidden_layers={hidden_layers} is below 1; use at least one.")
    return (hidden_size,) * hidden_layers


def mix(
    weights: Float[Array, "features out"], planes: Float[Array, "features ..."]
) -> Float[Array, "out ..."]:
    """Linear combinations of feature planes."""
    # Accelerators would round the operands to ten bits; the products are too small to gain by it.
    return jnp.tensordot(weights, planes, axes=(0, 0), precision=jax.lax.Precision.HIGHEST)


def mix_normalised(
    weights: Float[Array, "features out"],
    planes: Float[Array, "features ..."],
    *,
    eps: float,
    num_axes: int,
) -> Float[Array, "out ..."]:
    """`mix(weights, normalise(planes))`, without writing the normalised planes if it can be so."""
    if planes.ndim > num_axes + 1:
        return mix(weights, normalise(planes, eps=eps, num_axes=num_axes))
    scale = jax.lax.rsqrt(eps + mean_square(planes, num_axes))
    return mix(weights * scale[:, None], planes)


# Entries of a block: forty planes of so many are 2.5 MB. Tensors of a few blocks stay whole.
BLOCK = 2**14
MIN_BLOCKS = 4
# Products per entry up to which a network is written out, and entries from which on it is, since
# half a second goes into compiling each.
MAX_PRODUCTS = 512
MIN_ENTRIES = 2**15

Features = Callable[..., list[Array]]


def network_of_entries(
    theta: PyTree,
    weights: Float[Array, "features hidden"],
    offset: Float[Array, "hidden"],
    features: Features,
    arrays: Sequence[Array],
    extras: Sequence[Array],
    *,
    eps: float,
    num_outputs: int,
    shape: tuple[int, ...],
) -> Float[Array, "num_outputs ..."]:
    """`after_first(theta, mix_normalised(weights, features(*arrays)) + extras + offset)`.

    Args:
        theta: the layers; the first one is not used.
        weights: the first layer's, of these features.
        offset: its bias.
        features: `(*arrays) -> ` a list of planes `[any, *shape]`. It works entry by entry, along
            the first axis too, where 1 is broadcast, or without one; and closes over no traced
            value.
        arrays: `[any, *shape]`, where axes of the tensor may have length 1.
        extras: `[hidden, *shape]`, where axes of the tensor may have length 1.
        eps: added to the mean square of a feature over the whole tensor.
        num_outputs: how many outputs to compute.
        shape: the tensor's.
    """
    how = {"eps": eps, "num_outputs": num_outputs, "shape": shape}
    inputs = (theta, weights, offset, tuple(arrays), tuple(extras))
    whole = functools.partial(_whole, features, **how)
    blocked = functools.partial(_blocked, features, **how)
    products = weights.size + sum(theta[f"linear_{i}"]["w"].size for i in range(1, len(theta)))

    def plain(*inputs):
        if math.prod(shape) < MIN_BLOCKS * BLOCK:
            return whole(*inputs)
        return jax.lax.platform_dependent(*inputs, cpu=blocked, default=whole)

    if math.prod(shape) < MIN_ENTRIES or products > MAX_PRODUCTS:
        return plain(*inputs)
    # Its own derivative would be one reduction over the tensor for each weight.
    written_out = jax.custom_jvp(functools.partial(_written_out, features, **how))
    written_out.defjvp(lambda inputs, tangents: jax.jvp(plain, inputs, tangents))
    return written_out(*inputs)


def _finish(theta, offset, hidden, extras, num_outputs):
    hidden = sum(extras, hidden) + bias(offset, hidden)
    return after_first(theta, hidden, num_outputs=num_outputs)


def _whole(features, theta, weights, offset, arrays, extras, *, eps, num_outputs, shape):
    """All planes at once."""
    planes = jnp.concatenate(features(*arrays))
    hidden = mix_normalised(weights, planes, eps=eps, num_axes=len(shape))
    return _finish(theta, offset, hidden, extras, num_outputs)


def _blocked(features, theta, weights, offset, arrays, extras, *, eps, num_outputs, shape):
    """The planes of one block at a time."""
    scaled = _scaled(weights, _squares_in_blocks(features, arrays, shape), eps, shape)

    def outputs(*block):
        hidden = mix(scaled, jnp.concatenate(features(*block[: len(arrays)])))
        return _finish(theta, offset, hidden, block[len(arrays) :], num_outputs)

    parts, rest = _over_blocks(outputs, (*arrays, *extras), shape)
    axis = _block_axis(shape) + 1
    parts = jnp.moveaxis(parts, 0, axis)
    joined = parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])
    return joined if rest is None else jnp.concatenate([joined, rest], axis=axis)


def _written_out(features, theta, weights, offset, arrays, extras, *, eps, num_outputs, shape):
    """Every product by itself, so that one loop over the entries needs no planes in memory."""

    def squares_at_once(arrays):
        return jnp.stack([jnp.sum(x * x) for x in _planes_apart(features, arrays)])

    def squares_in_blocks(arrays):
        return _squares_in_blocks(features, arrays, shape)

    squares = jax.lax.platform_dependent(arrays, cpu=squares_in_blocks, default=squares_at_once)
    scaled = _scaled(weights, squares, eps, shape)

    def layer(w, b, inputs):
        return [sum((w[i, j] * x for i, x in enumerate(inputs)), b[j]) for j in range(w.shape[1])]

    values = layer(scaled, offset, _planes_apart(features, arrays))
    values = [sum((extra[j] for extra in extras), x) for j, x in enumerate(values)]
    for i in range(1, len(theta)):
        w, b = theta[f"linear_{i}"]["w"], theta[f"linear_{i}"]["b"]
        if i == len(theta) - 1:
            w, b = w[:, :num_outputs], b[:num_outputs]
        values = layer(w, b, [jax.nn.relu(x) for x in values])
    return jnp.stack(values)


def _planes_apart(features, arrays) -> list[Array]:
    """Every feature by itself, from arrays without a first axis: one loop can compute them all."""
    num = max(len(x) for x in arrays)
    parts = [features(*(x[i % len(x)] for x in arrays)) for i in range(num)]
    lengths = [len(x) for x in jax.eval_shape(features, *arrays)]
    return [parts[i][place] for place, n in enumerate(lengths) for i in range(n)]


def _scaled(weights, squares, eps, shape):
    """Weights for features that are not divided by their root mean squares."""
    return weights * jax.lax.rsqrt(eps + squares / math.prod(shape))[:, None]


def _squares_in_blocks(features, arrays, shape) -> Float[Array, "features"]:
    """Sums of squares of every feature over the tensor, without writing the features."""

    def columns(*block):
        # The last axis is left for later, because a CPU adds along it one number at a time.
        planes = _planes_apart(features, block)
        return [jnp.sum(x * x, axis=tuple(range(x.ndim - 1))) for x in planes]

    parts, rest = _over_blocks(columns, arrays, shape)
    sums = jnp.stack([jnp.sum(x) for x in parts])
    return sums if rest is None else sums + jnp.stack([jnp.sum(x) for x in rest])


def _block_axis(shape: tuple[int, ...]) -> int:
    return max(range(len(shape)), key=lambda axis: shape[axis])


def _over_blocks(function, arrays, shape) -> tuple[Any, Any]:
    """`function` of equal blocks along the longest axis, stacked; and of what is left over."""
    axis = _block_axis(shape)
    length = shape[axis]
    size = min(length, max(1, BLOCK * length // math.prod(shape)))
    whole, rest = divmod(length, size)

    def block(start, size):
        return [
            jax.lax.dynamic_slice_in_dim(x, start, size, axis + 1)
            if x.shape[axis + 1] == length
            else x
            for x in arrays
        ]

    stacked = jax.lax.map(lambda i: function(*block(i * size, size)), jnp.arange(whole))
    return stacked, function(*block(whole * size, rest)) if rest else None


def bias(values: Float[Array, "out"], planes: Float[Array, "features ..."]) -> Array:
    """One value per output plane, shaped to be added to planes."""
    return values.reshape((-1,) + (1,) * (planes.ndim - 1))


def after_first(
    theta: PyTree, hidden: Float[Array, "hidden ..."], *, num_outputs: int
) -> Float[Array, "num_outputs ..."]:
    """The network from the first layer's pre-activations to its first `num_outputs` outputs."""
    for i in range(1, len(theta)):
        w, b = theta[f"linear_{i}"]["w"], theta[f"linear_{i}"]["b"]
        if i == len(theta) - 1:
            w, b = w[:, :num_outputs], b[:num_outputs]
        hidden = mix(w, jax.nn.relu(hidden)) + bias(b, hidden)
    return hidden
