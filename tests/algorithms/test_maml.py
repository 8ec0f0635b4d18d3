import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, estimators, tasks
from metaopt.algorithms import adapt, maml
from tests.helpers import central_differences, ravel, relative_error

CURVATURE = np.array([1.0, 4.0])
CENTRE = np.array([1.0, 2.0])
RATE = 0.1


def parabolas() -> core.TaskFamily:
    """L = ½ Σ h (p − c − batch)², c being the task; support and query sets are two shifts of c."""

    def loss(params, centre, batch, key):
        return 0.5 * jnp.sum(CURVATURE * (params["p"] - centre - batch) ** 2), ()

    return core.TaskFamily(
        sample=lambda key: jnp.asarray(CENTRE),
        init=lambda centre, key: {"p": jnp.zeros(2)},
        batch=lambda data, centre, key: data,
        loss=loss,
    )


SHIFTS = core.Split(np.array([0.5, 0.0]), np.array([-0.5, 1.0]))


@pytest.mark.parametrize("gradient", ["reverse", "mixed", "first_order"])
@pytest.mark.parametrize("loop", ["scan", "unrolled"])
def test_agrees_with_the_closed_form_of_parabolas(x64, gradient, loop):
    num_steps = 3
    estimator = maml(
        parabolas(),
        optax.sgd(RATE),
        num_steps=num_steps,
        num_tasks=4,
        gradient=gradient,
        loop=loop,
    ).estimator
    theta = {"p": jnp.array([0.3, -0.7])}
    estimate, _ = jax.jit(estimator.estimate)(theta, (), SHIFTS, jax.random.key(3))

    shrink = (1 - RATE * CURVATURE) ** num_steps
    support, query = SHIFTS.inner, SHIFTS.outer
    minimum = CENTRE + support
    adapted = minimum + shrink * (np.asarray(theta["p"]) - minimum)
    residual = adapted - CENTRE - query
    loss = 0.5 * np.sum(CURVATURE * residual**2)
    slope = np.ones(2) if gradient == "first_order" else shrink
    expected = slope * CURVATURE * residual
    np.testing.assert_allclose(estimate.loss, loss, rtol=1e-10)
    np.testing.assert_allclose(estimate.grad["p"], expected, rtol=1e-10)


def test_agrees_with_central_differences_on_a_network(x64):
    family = tasks.sinusoid_regression(hidden=(3,), activation="tanh", batch_size=5)
    theta = family.init(family.sample(jax.random.key(0)), jax.random.key(1))
    estimator = maml(family, optax.sgd(0.05, momentum=0.9), num_steps=2, num_tasks=2).estimator

    def estimate(theta):
        return estimator.estimate(theta, (), (), jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    grad = jax.jit(lambda theta: estimate(theta).grad)(theta)
    assert relative_error(ravel(grad), differences) < 1e-6


def test_adaptation_is_gradient_descent_on_the_support_set(x64):
    theta, centre = {"p": jnp.array([0.3, -0.7])}, CENTRE
    run = jax.jit(adapt(parabolas(), optax.sgd(RATE), num_steps=2))
    params = run(theta, centre, SHIFTS.inner, jax.random.key(0))
    expected = theta["p"]
    for _ in range(2):
        expected = expected - RATE * CURVATURE * (expected - centre - SHIFTS.inner)
    np.testing.assert_allclose(params["p"], expected, rtol=1e-12)


def test_without_inner_progress_it_is_training_on_the_query_sets(x64):
    theta = {"p": jnp.array([0.3, -0.7])}
    still = maml(parabolas(), optax.sgd(0.0), num_steps=1, num_tasks=3).estimator
    joint = estimators.backprop(
        lambda theta, data, key: parabolas().loss(theta, CENTRE, data.outer, key)[0], num_tasks=3
    )
    first = still.estimate(theta, (), SHIFTS, jax.random.key(0))[0]
    second = joint.estimate(theta, (), SHIFTS, jax.random.key(0))[0]
    np.testing.assert_allclose(first.grad["p"], second.grad["p"], rtol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        maml(parabolas(), optax.sgd(RATE), num_steps=0)
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1"):
        maml(parabolas(), optax.sgd(RATE), num_tasks=0)
    with pytest.raises(ValueError, match="gradient='second' is unknown"):
        maml(parabolas(), optax.sgd(RATE), gradient="second")
