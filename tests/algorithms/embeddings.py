"""What the tests of embedding learners share: a tiny network on tiny random images."""

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import data, tasks

SHAPE = (4, 6, 2, 2, 1)
WAYS, SHOTS, QUERIES = 3, 2, 3


def init(key):
    """Four inputs, five features."""
    return jax.random.normal(key, (4, 5))


def embed(body, inputs):
    """One layer."""
    return jnp.tanh(inputs.reshape(len(inputs), -1) @ body)


def family(make=embed):
    """3-way 2-shot."""
    return tasks.few_shot_embedding(
        init, make, pool_shape=SHAPE, num_ways=WAYS, num_shots=SHOTS, num_queries=QUERIES
    )


def pool():
    """Four classes of six images."""
    return tasks.episodes(data.ClassPool(jax.random.normal(jax.random.key(0), SHAPE)))


def features_of(body, inputs) -> np.ndarray:
    """The embedding in NumPy."""
    inputs = np.asarray(inputs, np.float64)
    return np.tanh(inputs.reshape(len(inputs), -1) @ np.asarray(body, np.float64))


def cross_entropy(logits, labels) -> float:
    """The mean cross-entropy in NumPy."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(labels)), np.asarray(labels)].mean()


def noisy(inputs, key):
    """A distortion."""
    return inputs + 0.1 * jax.random.normal(key, inputs.shape, inputs.dtype)
