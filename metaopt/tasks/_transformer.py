"""A stack of transformer blocks, for text and for images.

    x ← x + attention(norm(x)),    x ← x + W₂ gelu(W₁ norm(x) + b₁) + b₂
    attention(x) = concat over heads of softmax(q kᵀ / √d + mask) v · W_out,    (q, k, v) = x W_qkv
    norm(x) = scale x / √(mean of x² + 1e-5)

Vaswani et al. 2017, arXiv:1706.03762, with the normalisation before each sublayer (Xiong et al.
2020, arXiv:2002.04745) and after the last, by the root mean square (Zhang and Sennrich 2019,
arXiv:1910.07467): centring as well makes a step a third dearer on CPU. The attention has no biases.
Weights have variance 1/fan_in, in what is added to the stream 1/(2 depth fan_in) (Radford et al.
2019, §2.3).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.data._check import at_least_one


def transformer(function: str, *, depth: int, width: int, heads: int, expansion: int, causal: bool):
    """The pair `(key) -> params`, `(params, x [n, t, width]) -> [n, t, width]`.

    `params` is `{"blocks": (block, ...), "scale": [width]}`. Errors name the `function`
    that makes the model.
    """
    at_least_one(function, depth=depth, width=width, heads=heads, expansion=expansion)
    if width % heads:
        raise ValueError(
            f"{function}: width={width} is not a multiple of heads={heads}; every head needs as "
            "many dimensions."
        )
    inside = jax.nn.initializers.lecun_normal()
    residual = jax.nn.initializers.variance_scaling(0.5 / depth, "fan_in", "truncated_normal")

    def init_block(key):
        key_qkv, key_out, key_up, key_down = jax.random.split(key, 4)
        inner = expansion * width
        return {
            "attention_scale": jnp.ones(width),
            "qkv": inside(key_qkv, (width, 3 * width)),
            "out": residual(key_out, (width, width)),
            "mlp_scale": jnp.ones(width),
            "up": {"w": inside(key_up, (width, inner)), "b": jnp.zeros(inner)},
            "down": {"w": residual(key_down, (inner, width)), "b": jnp.zeros(width)},
        }

    def init(key):
        blocks = tuple(init_block(block_key) for block_key in jax.random.split(key, depth))
        return {"blocks": blocks, "scale": jnp.ones(width)}

    def apply(params, x):
        for block in params["blocks"]:
            qkv = _normalise(block["attention_scale"], x) @ block["qkv"]
            x = x + _attend(qkv, heads=heads, causal=causal) @ block["out"]
            up, down = block["up"], block["down"]
            inner = _normalise(block["mlp_scale"], x) @ up["w"] + up["b"][None, None]
            x = x + jax.nn.gelu(inner) @ down["w"] + down["b"][None, None]
        return _normalise(params["scale"], x)

    return init, apply


def _normalise(scale, x):
    # In float32 or wider: a sum of squares in bfloat16 has two digits.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    unit = wide * jax.lax.rsqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5)
    return unit.astype(x.dtype) * scale[None, None]


def _attend(
    qkv: Float[Array, "n t three_width"], *, heads: int, causal: bool
) -> Float[Array, "n t width"]:
    n, length, three_width = qkv.shape
    size = three_width // (3 * heads)
    q, k, v = jnp.moveaxis(qkv.reshape(n, length, 3, heads, size), 2, 0)
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(size)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if causal:
        past = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(past[None, None], scores, jnp.finfo(scores.dtype).min)
    attention = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("nhqk,nkhd->nqhd", attention, v).reshape(n, length, heads * size)
