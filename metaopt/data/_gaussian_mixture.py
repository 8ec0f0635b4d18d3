"""A mixture of unit Gaussians, one per class.

    c ~ U{0..C-1},    x = μ_c + ε,    ε ~ N(0, I),    μ_c uniform on the sphere of radius s

With equal covariances the optimal decision is linear, and its error is known.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from metaopt.core import Scalar
from metaopt.data._check import at_least_one
from metaopt.data._pool import Pool


def gaussian_mixture(
    key: PRNGKeyArray,
    *,
    num_classes: int,
    dim: int,
    num_examples: int,
    separation: Scalar = 3.0,
) -> Pool:
    """Draws a classification pool from unit Gaussians around random means.

    The best classifier is linear: it picks the nearest mean, and confuses two classes at distance
    Δ with probability Φ(-Δ/2).

    Args:
        key: consumed; draws the means and the examples.
        num_classes: number of classes C. Static.
        dim: dimension of the inputs. Static.
        num_examples: size of the pool. Static.
        separation: distance s of every mean from the origin, in standard deviations. Traced.

    Returns:
        A pool with float inputs [num_examples, dim], not scaled to [0, 1], and int32 labels.

    Raises:
        ValueError: if a size is below 1.
    """
    at_least_one("gaussian_mixture", num_classes=num_classes, dim=dim, num_examples=num_examples)
    key_means, key_labels, key_noise = jax.random.split(key, 3)
    directions = jax.random.normal(key_means, (num_classes, dim))
    directions /= jnp.linalg.norm(directions, axis=-1, keepdims=True)
    labels = jax.random.randint(key_labels, (num_examples,), 0, num_classes, jnp.int32)
    noise = jax.random.normal(key_noise, (num_examples, dim))
    return Pool(separation * directions[labels] + noise, labels)
