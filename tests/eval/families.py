"""Tiny families with known answers."""

import jax
import jax.numpy as jnp

from metaopt.core import TaskFamily
from metaopt.tasks import Metrics


def quadratic(*curvatures):
    """ℓ(p) = ½ Σ c p² from p = 1, without noise; one task."""

    def loss(params, task_params, batch, key):
        return 0.5 * jnp.sum(task_params * params**2), {}

    return TaskFamily(
        sample=lambda key: jnp.array(curvatures, jnp.float32),
        init=lambda task_params, key: jnp.ones_like(task_params),
        batch=lambda data, task_params, key: (),
        loss=loss,
    )


def sgd_losses(curvatures, learning_rate, num_steps):
    """The losses of gradient descent on `quadratic`, before step 0 to after the last."""
    steps = range(num_steps + 1)
    return [0.5 * sum(c * (1 - learning_rate * c) ** (2 * t) for c in curvatures) for t in steps]


def noisy_quadratic(*, noise=0.1, curvatures=None):
    """ℓ(p) = mean c (p - noise · z)² in four dimensions; without curvatures, tasks differ."""

    def sample(key):
        if curvatures is None:
            return jax.random.uniform(key, (4,), minval=0.2, maxval=2.0)
        return jnp.array(curvatures, jnp.float32)

    return TaskFamily(
        sample=sample,
        init=lambda task_params, key: 2 * jax.random.uniform(key, (4,)),
        batch=lambda data, task_params, key: jax.random.uniform(key, (4,), minval=-1),
        loss=lambda params, c, batch, key: (jnp.mean(c * (params - noise * batch) ** 2), {}),
    )


def fit_pool():
    """ℓ(p) = ½ (p - pool)² from p = 0, and the "accuracy" 1 - p; the pool is a scalar."""

    def loss(params, task_params, batch, key):
        return 0.5 * (params - batch) ** 2, Metrics(1 - params)

    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros(()),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )
