"""Classification of digits: small problems on which update rules are compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

TRAIN = 1297


@functools.cache
def digits():
    """Pixels in [0, 1] and labels, permuted; the first `TRAIN` ones are for training."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return pixels[order] / 16, labels[order]


def mlp_params(sizes, seed=0):
    """He-normal weights and zero biases, in the precision in force."""
    rng = np.random.default_rng(seed)
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return [
        {"w": jnp.asarray(rng.normal(size=(m, n)) * np.sqrt(2 / m), float), "b": jnp.zeros(n)}
        for m, n in pairs
    ]


def mlp_loss(params, inputs, labels):
    """Mean cross-entropy of a network of rectified layers; of one layer, softmax regression."""
    *hidden, last = params
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["w"] + layer["b"][None])
    logits = inputs @ last["w"] + last["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
