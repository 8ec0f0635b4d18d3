"""Images as functions of coordinates: one small network per image, fitted to some of its pixels.

    L(params) = mean over pixels v of |f(v) - image(v)|²,    PSNR = -10 log₁₀ L

    fourier:  f = sigmoid ∘ perceptron ∘ [cos(Bv), sin(Bv)],   B ~ N(0, scale²), the same for all
    siren:    hₗ = sin(ω (hₗ₋₁ Wₗ + bₗ)),   f = ½ + h_last W + b

Tancik et al. 2020, arXiv:2006.10739 (Fourier features); Sitzmann et al. 2020, arXiv:2006.09661
(sines; weights as in its §3.2, biases as in its public code); Tancik et al. 2021,
arXiv:2012.02189 (initial weights learned from other images).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metaopt.core import TaskFamily, checked
from metaopt.data import Pool
from metaopt.data._check import above_zero, at_least_one
from metaopt.tasks._few_shot import Query, Support
from metaopt.tasks._mlp import dense_layers

FieldNetwork = Literal["fourier", "siren"]
_SCALES = {"fourier": 4.0, "siren": 30.0}


class CoordinateTask(NamedTuple):
    """An image to fit.

    Attributes:
        image: index in the pool.
        support: its visible pixels, counted row by row.
    """

    image: Int[Array, ""]
    support: Int[Array, " pixels"]


class Reconstruction(NamedTuple):
    """What the loss of a coordinate network reports besides itself.

    Attributes:
        psnr: peak signal-to-noise ratio in dB, for values in [0, 1].
    """

    psnr: Float[Array, ""]


@checked
def coordinate_images(
    pool_shape: tuple[int, ...],
    *,
    field: FieldNetwork = "fourier",
    hidden: Sequence[int] = (64, 64),
    num_features: int = 64,
    scale: float | None = None,
    support_share: float = 1.0,
    seed: int = 0,
) -> TaskFamily:
    """Regression of the pixels of an image by their coordinates.

    The support set is a random share of the pixels of one image, drawn with the task, the query
    set all of them. Inputs are (row, column) of pixel centres, the image filling [-1, 1]². The
    normaliser clips the squared error to [0, 1].

    Args:
        pool_shape: shape of the pool, [images, height, width, channels]. Static.
        field: the network, see the module. Static.
        hidden: widths of the hidden layers. Static.
        num_features: frequencies, each of which gives a cosine and a sine; for "fourier". Static.
        scale: deviation of the frequencies ("fourier"; 4 unless told) or ω ("siren"; 30), in
            radians per half width of the image. Static.
        support_share: share of the pixels that the support set shows, above 0 and at most 1.
            Static.
        seed: of the frequencies. Static.

    Returns:
        A family with `data` made by `episodes(images)`, values in [0, 1]; `task_params` a
        `CoordinateTask`, batches a `metaopt.data.Pool` of coordinates [m, 2] and values
        [m, channels], `params` as in `mlp` and `aux` of type `Reconstruction`.

    Raises:
        ValueError: if a size is below 1, `field` is unknown, `scale` is not positive or
            `support_share` not in (0, 1]; when traced, if `data` is not made by `episodes` or has
            another shape.
    """
    name = "coordinate_images"
    if len(pool_shape) != 4 or any(size < 1 for size in pool_shape):
        raise ValueError(
            f"{name}: pool_shape={tuple(pool_shape)} is not (images, height, width, channels)."
        )
    if not 0 < support_share <= 1:
        raise ValueError(f"{name}: support_share={support_share} is not above 0 and at most 1.")
    init, apply = _network(name, field, hidden, pool_shape[-1], num_features, scale, seed)
    num_images, height, width, channels = pool_shape
    num_pixels = height * width
    num_support = max(1, round(support_share * num_pixels))

    def sample(key):
        key_image, key_pixels = jax.random.split(key)
        image = jax.random.randint(key_image, (), 0, num_images, jnp.int32)
        order = jax.random.permutation(key_pixels, num_pixels)[:num_support]
        return CoordinateTask(image, order.astype(jnp.int32))

    def batch(data, task_params, key):
        del key
        if not isinstance(data, Support | Query) or getattr(data.pool, "shape", ()) != tuple(
            pool_shape
        ):
            raise ValueError(
                f"{name}: data is a {type(data).__name__}; pass metaopt.tasks.episodes(images) "
                f"with images of shape pool_shape={tuple(pool_shape)}."
            )
        values = jnp.asarray(data.pool)[task_params.image].reshape(num_pixels, channels)
        where = jnp.asarray(_centres(height, width), values.dtype)
        if isinstance(data, Support):
            return Pool(where[task_params.support], values[task_params.support])
        return Pool(where, values)

    def loss(params, task_params, batch, key):
        del task_params, key
        outputs = apply(params, batch.inputs)
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        value = ((outputs - batch.labels) ** 2).mean()
        return value, Reconstruction(-10 * jnp.log10(jnp.maximum(value, 1e-12)))

    return TaskFamily(
        sample=sample,
        init=lambda task_params, key: init(key),
        batch=batch,
        loss=loss,
        normalise=lambda loss, task_params: jnp.clip(jnp.nan_to_num(loss, nan=1.0), 0.0, 1.0),
    )


def _network(name, field, hidden, channels, num_features, scale, seed):
    """The pair `(key) -> params`, `(params, coordinates) -> values`."""
    if field not in get_args(FieldNetwork):
        raise ValueError(
            f"{name}: field={field!r} is unknown; choose from {get_args(FieldNetwork)}."
        )
    at_least_one(name, num_features=num_features)
    scale = _SCALES[field] if scale is None else scale
    above_zero(name, scale=scale)
    if field == "siren":
        return _siren(name, (2, *hidden, channels), scale)
    frequencies = scale * np.random.default_rng(seed).normal(size=(2, num_features))
    init, perceptron = dense_layers(name, (2 * num_features, *hidden, channels), "relu")

    def apply(params, where):
        angles = where @ jnp.asarray(frequencies, where.dtype)
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return jax.nn.sigmoid(perceptron(params, features))

    return init, apply


def _siren(name, widths, omega):
    if len(widths) < 3 or any(width < 1 for width in widths):
        raise ValueError(
            f"{name}: hidden={tuple(widths[1:-1])} must hold positive widths, at least one."
        )

    def init(key):
        layers = []
        for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
            key_w, key_b = jax.random.split(jax.random.fold_in(key, index))
            limit = math.sqrt(6 / fan_in) / omega if index else 1 / fan_in
            w = jax.random.uniform(key_w, (fan_in, fan_out), minval=-limit, maxval=limit)
            limit = 1 / math.sqrt(fan_in)
            b = jax.random.uniform(key_b, (fan_out,), minval=-limit, maxval=limit)
            layers.append({"w": w, "b": b})
        return tuple(layers)

    def apply(params, where):
        for layer in params[:-1]:
            where = jnp.sin(omega * (where @ layer["w"] + layer["b"][None]))
        return 0.5 + where @ params[-1]["w"] + params[-1]["b"][None]

    return init, apply


def _centres(height: int, width: int) -> np.ndarray:
    """Pixel centres, [height * width, 2], row by row."""
    rows, columns = ((2 * np.arange(size) + 1) / size - 1 for size in (height, width))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
