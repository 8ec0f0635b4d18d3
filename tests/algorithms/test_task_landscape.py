"""MAML on quadratics in closed form: optima weighed by what a step leaves of their curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core
from metaopt.algorithms import maml

RATE = 0.9
CURVATURE = np.array([1.0, 1.0, 0.1, 0.1])
OPTIMA = np.array([[0.3, -0.2], [-0.1, 0.4], [5.0, 1.0], [4.5, 0.7]])


def quadratics() -> core.TaskFamily:
    """Four tasks with known curvatures and optima."""

    def loss(params, index, batch, key):
        return 0.5 * batch[0] * jnp.sum((params - batch[1]) ** 2), ()

    return core.TaskFamily(
        sample=lambda key: jax.random.randint(key, (), 0, 4),
        init=lambda index, key: jnp.zeros(2),
        batch=lambda data, index, key: jax.tree.map(lambda x: x[index], data),
        loss=loss,
    )


def closed_form(rate, num_steps):
    """Minimiser of the mean loss after some steps: weights b (1 - ab)^(2K)."""
    weights = CURVATURE * (1 - rate * CURVATURE) ** (2 * num_steps)
    return weights @ OPTIMA / weights.sum()


@pytest.mark.parametrize(("rate", "num_steps"), [(RATE, 1), (RATE, 2), (0.0, 1)])
def test_the_meta_gradient_vanishes_at_the_minimiser_and_nowhere_near(x64, rate, num_steps):
    learner = maml(quadratics(), optax.sgd(rate), num_steps=num_steps, num_tasks=1)

    @jax.jit
    @jax.vmap
    def each(curvature, optimum):
        """One task at a time, whatever the draw."""
        data = (jnp.full(4, curvature), jnp.broadcast_to(optimum[None], (4, 2)))
        grad = jax.vmap(
            lambda theta: learner.estimator.estimate(theta, (), data, jax.random.key(0))[0].grad
        )
        return grad(jnp.asarray(points))

    best = closed_form(rate, num_steps)
    points = np.stack([best, best + [0.01, 0.0], best + [0.0, -0.01]])
    grads = np.asarray(each(jnp.asarray(CURVATURE), jnp.asarray(OPTIMA)))
    mean, size = grads.mean(axis=0), np.abs(grads).max()
    assert np.abs(mean[0]).max() < 1e-12 * size
    weights = CURVATURE * (1 - rate * CURVATURE) ** (2 * num_steps)
    np.testing.assert_allclose(
        mean[1:], weights.mean() * (points[1:] - best), rtol=1e-9, atol=1e-15
    )


def test_the_minimiser_listens_to_hard_tasks():
    adapted, plain = closed_form(RATE, 1), closed_form(0.0, 1)
    # By hand: weights 0.01 and 0.1 · 0.91² = 0.08281 of each; 1 and 0.1 without adaptation.
    np.testing.assert_allclose(adapted[0], (0.01 * 0.2 + 0.08281 * 9.5) / (2 * 0.09281), rtol=1e-12)
    np.testing.assert_allclose(plain[0], (0.2 + 0.95) / 2.2, rtol=1e-12)
