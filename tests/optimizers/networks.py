"""Small networks on digits, for claims about update rules."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits


def digits(dtype=np.float32):
    """Pixels in [0, 1] and labels in an order of their own: 1297 to train on, 500 to test."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels, labels = (pixels[order] / 16).astype(dtype), labels[order].astype(np.int32)
    return (pixels[:1297], labels[:1297]), (pixels[-500:], labels[-500:])


def dense(widths, key, gain=2.0, dtype=None):
    """Layers `{"w": [fan_in, fan_out], "b": [fan_out]}` with weights of variance gain/fan_in."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {
            "w": jax.random.normal(k, (rows, columns), dtype) * (gain / rows) ** 0.5,
            "b": jnp.zeros(columns, dtype),
        }
        for k, rows, columns in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def apply(params, x, act=jnp.tanh):
    """Outputs of the last layer."""
    for layer in params[:-1]:
        x = act(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def cross_entropy(logits, labels):
    """The mean over examples."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1))
