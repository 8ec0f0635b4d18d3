import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import MetaSGDTheta, maml, meta_sgd
from tests.algorithms.small_network import DATA, small_network, small_params
from tests.algorithms.test_maml import CENTRE, CURVATURE, RATE, SHIFTS, parabolas
from tests.helpers import central_differences, ravel, relative_error


@pytest.mark.parametrize("gradient", ["reverse", "mixed", "first_order"])
def test_agrees_with_the_closed_form_of_parabolas(x64, gradient):
    rates = np.array([0.2, 0.05])
    theta = MetaSGDTheta({"p": jnp.array([0.3, -0.7])}, {"p": jnp.log(rates)})
    estimator = meta_sgd(parabolas(), num_steps=2, num_tasks=3, gradient=gradient).estimator
    estimate, _ = jax.jit(estimator.estimate)(theta, (), SHIFTS, jax.random.key(3))

    minimum = CENTRE + SHIFTS.inner
    gap = np.asarray(theta.params["p"]) - minimum
    shrink = 1 - rates * CURVATURE
    residual = minimum + shrink**2 * gap - CENTRE - SHIFTS.outer
    if gradient == "first_order":
        by_start, by_rate = np.ones(2), -CURVATURE * gap * (1 + shrink)
    else:
        by_start, by_rate = shrink**2, -2 * CURVATURE * gap * shrink
    outer = CURVATURE * residual
    np.testing.assert_allclose(estimate.loss, 0.5 * np.sum(CURVATURE * residual**2), rtol=1e-10)
    np.testing.assert_allclose(estimate.grad.params["p"], outer * by_start, rtol=1e-10)
    np.testing.assert_allclose(estimate.grad.log_rates["p"], outer * by_rate * rates, rtol=1e-10)


def theta_of(rate) -> MetaSGDTheta:
    params = small_params()
    return MetaSGDTheta(params, jax.tree.map(lambda x: np.full(x.shape, np.log(rate)), params))


def test_agrees_with_central_differences_on_a_network(x64):
    estimator = meta_sgd(small_network(), num_steps=2, num_tasks=1).estimator

    def estimate(theta):
        return estimator.estimate(theta, (), DATA, jax.random.key(2))[0]

    theta = theta_of(0.05)
    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    grad = jax.jit(lambda theta: estimate(theta).grad)(theta)
    assert relative_error(ravel(grad), differences) < 1e-6


def test_with_equal_rates_it_is_maml(x64):
    family, settings = small_network(), {"num_steps": 2, "num_tasks": 1}
    learner = meta_sgd(family, learning_rate=RATE, **settings)
    plain = maml(family, optax.sgd(RATE), **settings)
    theta = learner.init(jax.random.key(0))
    assert relative_error(theta.params, plain.init(jax.random.key(0))) == 0
    np.testing.assert_allclose(ravel(theta.log_rates), np.log(RATE), rtol=1e-12)

    @jax.jit
    def both(theta):
        first, _ = learner.estimator.estimate(theta, (), DATA, jax.random.key(1))
        return first, plain.estimator.estimate(theta.params, (), DATA, jax.random.key(1))[0]

    first, second = both(theta_of(RATE))
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-12)
    assert relative_error(first.grad.params, second.grad) < 1e-12


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="meta_sgd: learning_rate must be positive"):
        meta_sgd(parabolas(), learning_rate=0.0)
    with pytest.raises(ValueError, match="meta_sgd: num_steps must be at least 1"):
        meta_sgd(parabolas(), num_steps=0)
    with pytest.raises(ValueError, match="meta_sgd: num_tasks must be an integer of at least 1"):
        meta_sgd(parabolas(), num_tasks=0)
