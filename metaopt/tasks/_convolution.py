"""3 x 3 convolutions whose kernels differ between vmapped tasks.

A convolution is bilinear, and so are its derivatives, which are two more convolutions:

    outputs[n, p, o] = Σ images[n, s p + q, i] kernel[q, i, o]      (padded as "SAME")
    images[n, r, i]  = Σ outputs[n, p, o] kernel[r - s p, i, o]
    kernel[q, i, o]  = Σ images[n, s p + q, i] outputs[n, p, o]

Each is the contraction of one trilinear form with two of its three arrays, so one primitive with
`wanted=`, the third, is closed under differentiation of any order and mode. XLA would make grouped
convolutions of vmapped ones, for which it has no fast code. Here tasks are an axis of the
primitive: on one CPU device each has a convolution of its own, one after the other, where patches
would leave the cache; elsewhere nine slices are multiplied by all kernels at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from metaopt.core import checked

# The arrays that the wanted one is made of, and the axes they have to themselves: the n examples,
# i channels of images and o channels of outputs, behind the axis of tasks.
OPERANDS = {
    "outputs": ("images", "kernel"),
    "images": ("outputs", "kernel"),
    "kernel": ("images", "outputs"),
}
AXES = {"images": {"n": 1, "i": 4}, "outputs": {"n": 1, "o": 4}, "kernel": {"i": 3, "o": 4}}
LAYOUT = ("NHWC", "HWIO", "NHWC")
LARGE = 2**18
"""Bytes of a task's patches from where a convolution is faster than products, on CPU; that for the
kernel always is."""


@checked
def convolve(
    images: Float[Array, "n h w inputs"],
    kernel: Float[Array, "3 3 inputs outputs"],
    *,
    stride: int,
) -> Float[Array, "n h2 w2 outputs"]:
    """A 3 x 3 convolution with "SAME" padding, fast under `vmap` over kernels.

    Args:
        images: inputs.
        kernel: weights.
        stride: 1 or more, along both axes. Static.

    Returns:
        Sizes are those of the images over the stride, rounded up; the dtype is the wider one.

    Raises:
        ValueError: if shapes do not fit or the stride is below 1.
    """
    fits = images.ndim == kernel.ndim == 4 and kernel.shape[:3] == (3, 3, images.shape[-1])
    if not fits or stride < 1:
        raise ValueError(
            f"convolve: images have shape {images.shape}, kernel {kernel.shape} and stride "
            f"{stride}; give [n, h, w, inputs], [3, 3, inputs, outputs] and a stride of 1 or more."
        )
    dtype = jnp.result_type(images, kernel)
    arrays = {"images": images[None].astype(dtype), "kernel": kernel[None].astype(dtype)}
    size = (images.shape[1], images.shape[2])
    meshes = [jax.typeof(x).sharding.mesh for x in arrays.values()]
    if any(mesh.explicit_axes or mesh.manual_axes for mesh in meshes):
        # Only the operations of JAX know what becomes of these.
        return _products(*arrays.values(), wanted="outputs", stride=stride, size=size)[0]
    return _contract(arrays, wanted="outputs", stride=stride, size=size)[0]


def _contract(arrays, *, wanted, **settings):
    return _convolution.bind(*(arrays[x] for x in OPERANDS[wanted]), wanted=wanted, **settings)


def _padding(size: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind, as "SAME" has them."""
    total = stride * (-(-size // stride) - 1) + 3 - size
    return total // 2, total - total // 2


def _shape(lhs, rhs, *, wanted, stride, size) -> tuple[int, ...]:
    left, right = (x.shape for x in (lhs, rhs))
    if wanted == "outputs":
        return (*left[:2], *(-(-x // stride) for x in size), right[4])
    if wanted == "images":
        return (*left[:2], *size, right[3])
    return (left[0], 3, 3, left[4], right[4])


# Two ways to compute it -----------------------------------------------------------------------


def _products(lhs, rhs, *, wanted, stride, size):
    """Of slices and kernels, all tasks at once."""
    (low, high), (left, right) = (_padding(x, stride) for x in size)
    rows, columns = (stride * (-(-x // stride) - 1) + 1 for x in size)

    def outputs(images, kernel):
        padded = jnp.pad(images, ((0, 0), (0, 0), (low, high), (left, right), (0, 0)))
        slices = [
            padded[:, :, i : i + rows : stride, j : j + columns : stride]
            for i in range(3)
            for j in range(3)
        ]
        flat = kernel.reshape(kernel.shape[0], -1, kernel.shape[-1])
        return jnp.einsum("tnhwk,tko->tnhwo", jnp.concatenate(slices, axis=-1), flat)

    if wanted == "outputs":
        return outputs(lhs, rhs)
    unknown = jax.ShapeDtypeStruct(
        _shape(lhs, rhs, wanted=wanted, stride=stride, size=size), lhs.dtype
    )
    if wanted == "images":
        return jax.linear_transpose(lambda images: outputs(images, rhs), unknown)(lhs)[0]
    return jax.linear_transpose(lambda kernel: outputs(lhs, kernel), unknown)(rhs)[0]


def _one_by_one(lhs, rhs, *, wanted, stride, size):
    """By convolutions in the layout that XLA has fast code for, of a task after the other."""
    before = [_padding(x, stride) for x in size]
    behind = [(2 - low, 2 - high) for low, high in before]
    apart = (stride, stride)

    def outputs(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, apart, before, dimension_numbers=LAYOUT)

    def images(outputs, kernel):
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        return jax.lax.conv_general_dilated(
            outputs, turned, (1, 1), behind, lhs_dilation=apart, dimension_numbers=LAYOUT
        )

    def kernel(images, outputs):
        # Channels are the examples, and examples the channels.
        found = jax.lax.conv_general_dilated(
            images.transpose(3, 1, 2, 0),
            outputs.transpose(1, 2, 0, 3),
            (1, 1),
            before,
            rhs_dilation=apart,
            dimension_numbers=LAYOUT,
        )
        return found.transpose(1, 2, 0, 3)

    one = {"outputs": outputs, "images": images, "kernel": kernel}[wanted]
    if len(lhs) == 1:
        return one(lhs[0], rhs[0])[None]
    return jax.lax.map(lambda operands: one(*operands), (lhs, rhs))


# The primitive --------------------------------------------------------------------------------

_convolution = Primitive("convolution_of_tasks")
_run = jax.jit(_convolution.bind, static_argnames=("wanted", "stride", "size"))
_convolution.def_impl(_run)


@_convolution.def_abstract_eval
def _type(lhs, rhs, **settings):
    return ShapedArray(_shape(lhs, rhs, **settings), lhs.dtype)


def _transpose(position, cotangent, lhs, rhs, *, wanted, **settings):
    names = OPERANDS[wanted]
    arrays = {wanted: cotangent, names[1 - position]: (lhs, rhs)[1 - position]}
    return _contract(arrays, wanted=names[position], **settings)


def _batch(operands, axes, *, wanted, **settings):
    names = OPERANDS[wanted]
    if None not in axes:
        moved = [jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
        joined = [x.reshape(-1, *x.shape[2:]) for x in moved]
        found = _convolution.bind(*joined, wanted=wanted, **settings)
        return found.reshape(*moved[0].shape[:2], *found.shape[1:]), 0
    # More of what one operand has to itself, which goes into the result.
    which = 0 if axes[1] is None else 1
    (own,) = AXES[names[which]].keys() - AXES[names[1 - which]].keys()
    place = AXES[names[which]][own]
    moved = jnp.moveaxis(operands[which], axes[which], place)
    joined = list(operands)
    joined[which] = moved.reshape(*moved.shape[:place], -1, *moved.shape[place + 2 :])
    found, place_found = _convolution.bind(*joined, wanted=wanted, **settings), AXES[wanted][own]
    shape = found.shape
    return found.reshape(
        *shape[:place_found], moved.shape[place], -1, *shape[place_found + 1 :]
    ), place_found


def _lower_on_cpu(ctx, lhs, rhs, *, wanted, stride, size):
    """Of several devices each has some of the tasks, which a loop over all of them would gather."""
    shapes = dict(zip(OPERANDS[wanted], (aval.shape for aval in ctx.avals_in), strict=True))
    shapes[wanted] = ctx.avals_out[0].shape
    _, n, height, width, _ = shapes["outputs"]
    patches = 4 * n * height * width * 9 * shapes["kernel"][3]
    alone = getattr(ctx.module_context.axis_context, "num_devices", None) == 1
    single = ctx.avals_out[0].dtype == jnp.float32
    large = patches >= LARGE or wanted == "kernel"
    way = _one_by_one if alone and single and large else _products
    lower = mlir.lower_fun(way, multiple_results=False)
    return lower(ctx, lhs, rhs, wanted=wanted, stride=stride, size=size)


ad.defbilinear(_convolution, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[_convolution] = _batch
mlir.register_lowering(_convolution, mlir.lower_fun(_products, multiple_results=False))
mlir.register_lowering(_convolution, _lower_on_cpu, platform="cpu")
