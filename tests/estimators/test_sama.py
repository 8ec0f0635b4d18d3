import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.estimators import sama
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED
from tests.helpers import relative_error

RATE, B1, B2, ROOT, EPS = 0.1, 0.9, 0.999, 1e-8, 1e-8


def adam(z, m, s, gradient, t):
    """One step of optax's Adam and the derivative of its update in the gradient."""
    m_new, s_new = B1 * m + (1 - B1) * gradient, B2 * s + (1 - B2) * gradient**2
    m_hat, s_hat = m_new / (1 - B1**t), s_new / (1 - B2**t)
    root = np.sqrt(s_hat + ROOT)
    slope = (1 - B1) / (1 - B1**t) / (root + EPS)
    slope -= m_hat / (root + EPS) ** 2 * (1 - B2) * gradient / (1 - B2**t) / root
    return z - RATE * m_hat / (root + EPS), m_new, s_new, RATE * slope


def test_three_estimates_with_adam_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        z, m, s = (bilevel.Z0, np.zeros(3), np.zeros(3)) if carried is None else carried
        for t in (2 * k + 1, 2 * k + 2):
            z, m, s, factor = adam(z, m, s, CURVED.g_z(z, x), t)
        w = factor * CURVED.f_z(z, x)
        direction = CURVED.f_x(z, x) - CURVED.cross(z, x) @ w
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        return (z, m, s), direction, {"params": z}

    estimate = bilevel.check_steps("sama", transcription, {})
    assert tuple(int(x) for x in estimate.info.oracles) == (2, 1, 0, 1)


def plain_adam(rate):
    """Adam of the paper's formula: no bias correction and no stabiliser."""

    def init(params):
        return jnp.full(2, 0.3), jnp.full(2, 0.2)

    def update(updates, state, params=None):
        m, s = B1 * state[0] + (1 - B1) * updates, B2 * state[1] + (1 - B2) * updates**2
        return -rate * m / jnp.sqrt(s), (m, s)

    return optax.GradientTransformation(init, update)


def test_the_factor_for_adam_is_that_of_the_paper(x64):
    # g = ½ |z − x|², f = c·z: J = −I, so the direction is D c.
    slope = jnp.array([1.0, -2.0])
    problem = bilevel.BilevelProblem(
        lambda key: jnp.array([0.5, 0.1]),
        lambda z, x, data, key: 0.5 * jnp.sum((z - x) ** 2),
        lambda z, x, data, key: slope @ z,
    )
    estimator, theta = sama(problem, plain_adam(RATE)), jnp.array([0.2, 0.4])
    state = estimator.init(theta, (), jax.random.key(0))
    estimate, _ = estimator.estimate(theta, state, (), jax.random.key(1))
    q, m_old, s_old = np.array([0.3, -0.3]), 0.3, 0.2
    s = B2 * s_old + (1 - B2) * q**2
    factor = RATE * ((1 - B1) * B2 * s_old - B1 * (1 - B2) * q * m_old) / s**1.5
    np.testing.assert_allclose(estimate.grad, factor * slope, rtol=1e-12)


def test_the_finite_difference_is_the_exact_product(x64):
    # g_x is a quadratic in z, of which central differences are exact at any distance.
    opt, theta, data = optax.sgd(0.2, momentum=0.5), bilevel.theta_of(bilevel.X0), CURVED.data()
    grads = []
    for mixed in ("exact", "finite_difference"):
        estimator = sama(bilevel.PROBLEM, opt, mixed=mixed)
        state = estimator.init(theta, data, jax.random.key(0))
        estimate, _ = jax.jit(estimator.estimate)(theta, state, data, jax.random.key(1))
        grads.append(bilevel.x_of(estimate.grad))
        counts = (1, 1, 0, 1) if mixed == "exact" else (3, 1, 0, 0)
        assert tuple(int(x) for x in estimate.info.oracles) == counts
    assert relative_error(grads[1], grads[0]) < 1e-10


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="sama: mixed='none' is unknown"):
        sama(bilevel.PROBLEM, optax.sgd(0.1), mixed="none")
    with pytest.raises(ValueError, match="sama: alpha must be positive"):
        sama(bilevel.PROBLEM, optax.sgd(0.1), alpha=0.0)
