"""The small network that per-parameter rules apply to every entry of every tensor.

    h_0 = W_0ᵀ x + b_0,    h_{i+1} = W_{i+1}ᵀ relu(h_i) + b_{i+1}

`theta` is `{"linear_0": {"w": [in, out], "b": [out]}, "linear_1": ...}`. Features lead, so a layer
is one `[out, in] x [in, entries]` product. The first layer is left to the rule: a feature that is
constant over a tensor, its rows or its columns is worth one product there, not one per entry.

Planes of features are many times the size of their tensor. On CPUs large tensors therefore go
through the network in blocks whose planes fit a core's cache, at the cost of computing the features
twice: for their mean squares, and for the network.
"""

import math
from collections.abc import Callable, Sequence

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


def mix_normalised_in_blocks(
    weights: Float[Array, "features out"],
    features: Callable[..., Float[Array, "features ..."]],
    arrays: Sequence[Array],
    finish: Callable[..., Float[Array, "out ..."]],
    extras: Sequence[Array],
    *,
    eps: float,
    shape: tuple[int, ...],
) -> Float[Array, "out ..."]:
    """`finish(mix_normalised(weights, features(*arrays)), *extras)`, in little memory on CPUs.

    Args:
        weights: the first layer's.
        features: `(*arrays) -> planes`, entry by entry.
        arrays: `[any, *shape]`, where axes of the tensor may have length 1.
        finish: `(hidden, *extras) -> planes`, entry by entry.
        extras: as `arrays`.
        eps: added to the mean square of a feature over the whole tensor.
        shape: the tensor's.
    """

    def whole(arrays, extras):
        planes = features(*arrays)
        hidden = mix_normalised(weights, planes, eps=eps, num_axes=len(shape))
        return finish(hidden, *extras)

    def blocked(arrays, extras):
        def sums(*block):
            planes = features(*block)
            return mean_square(planes, len(shape)) * math.prod(planes.shape[1:])

        squares, rest = _over_blocks(sums, arrays, shape)
        squares = jnp.sum(squares, axis=0) + (0 if rest is None else rest)
        scaled = weights * jax.lax.rsqrt(eps + squares / math.prod(shape))[:, None]

        def outputs(*block):
            planes = features(*block[: len(arrays)])
            return finish(mix(scaled, planes), *block[len(arrays) :])

        parts, rest = _over_blocks(outputs, (*arrays, *extras), shape)
        axis = _block_axis(shape) + 1
        parts = jnp.moveaxis(parts, 0, axis)
        joined = parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])
        return joined if rest is None else jnp.concatenate([joined, rest], axis=axis)

    if math.prod(shape) < MIN_BLOCKS * BLOCK:
        return whole(arrays, extras)
    return jax.lax.platform_dependent(tuple(arrays), tuple(extras), cpu=blocked, default=whole)


def _block_axis(shape: tuple[int, ...]) -> int:
    return max(range(len(shape)), key=lambda axis: shape[axis])


def _over_blocks(function, arrays, shape) -> tuple[Array, Array | None]:
    """`function` of equal blocks along the longest axis, stacked; and of what is left over."""
    axis = _block_axis(shape)
    length = shape[axis]
    size = max(1, BLOCK * length // math.prod(shape))
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
