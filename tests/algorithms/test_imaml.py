import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, implicit
from metaopt.algorithms import imaml
from tests.algorithms.small_network import DATA, small_network, small_params
from tests.algorithms.test_maml import CENTRE, CURVATURE, RATE, SHIFTS, parabolas
from tests.helpers import central_differences, ravel, relative_error

PENALTY = 1.5


def solved(theta):
    """The minimiser of the support parabola plus PENALTY/2 times the squared distance."""
    minimum = CENTRE + SHIFTS.inner
    return (CURVATURE * minimum + PENALTY * theta) / (CURVATURE + PENALTY)


def test_agrees_with_the_closed_form_of_parabolas(x64):
    learner = imaml(parabolas(), optax.sgd(0.15), penalty=PENALTY, num_steps=200, num_tasks=3)
    theta = {"p": jnp.array([0.3, -0.7])}

    @jax.jit
    def run(theta, key):
        key_init, key_run = jax.random.split(key)
        state = learner.estimator.init(theta, SHIFTS, key_init)
        return learner.estimator.estimate(theta, state, SHIFTS, key_run)[0]

    estimate = run(theta, jax.random.key(0))
    start = np.asarray(theta["p"])
    residual = solved(start) - CENTRE - SHIFTS.outer
    expected = PENALTY / (CURVATURE + PENALTY) * CURVATURE * residual
    np.testing.assert_allclose(estimate.loss, 0.5 * np.sum(CURVATURE * residual**2), rtol=1e-9)
    np.testing.assert_allclose(estimate.grad["p"], expected, rtol=1e-9)
    assert estimate.info.aux.stationarity < 1e-9
    assert estimate.info.aux.residual < 1e-6


def test_adaptation_ends_at_the_proximal_solution(x64):
    learner = imaml(parabolas(), optax.sgd(0.15), penalty=PENALTY, num_steps=200)
    theta = {"p": jnp.array([0.3, -0.7])}
    params = jax.jit(learner.adapt)(theta, CENTRE, SHIFTS.inner, jax.random.key(0))
    np.testing.assert_allclose(params["p"], solved(np.asarray(theta["p"])), rtol=1e-9)


def test_agrees_with_central_differences_at_the_solution_of_a_network(x64):
    learner = imaml(
        small_network(),
        optax.sgd(0.05),
        penalty=4.0,
        solver=implicit.cg(rtol=1e-12),
        num_steps=1000,
        num_tasks=1,
    )

    def estimate(theta):
        state = learner.estimator.init(theta, DATA, jax.random.key(2))
        return learner.estimator.estimate(theta, state, DATA, jax.random.key(3))[0]

    theta = jax.tree.map(jnp.asarray, small_params())
    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    found = jax.jit(estimate)(theta)
    assert found.info.nonfinite == 0
    assert found.info.aux.stationarity < 1e-8
    assert relative_error(ravel(found.grad), differences) < 1e-6


def logistic_episode(key):
    """Classification of 20 points in eight dimensions into three classes."""
    key_x, key_y = jax.random.split(key)
    return jax.random.normal(key_x, (20, 8)), jax.random.randint(key_y, (20,), 0, 3)


def logistic() -> core.TaskFamily:
    def loss(params, task_params, batch, key):
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(x @ params, y).mean(), ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros((8, 3)),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


def test_more_conjugate_gradient_steps_come_closer_to_backpropagation_through_many(x64):
    key_support, key_query, key_theta = jax.random.split(jax.random.key(0), 3)
    data = core.Split(logistic_episode(key_support), logistic_episode(key_query))
    theta = 0.5 * jax.random.normal(key_theta, (8, 3))
    family, penalty = logistic(), 0.5

    def unrolled(theta):
        def proximal(params):
            fit = family.loss(params, (), data.inner, None)[0]
            return fit + 0.5 * penalty * jnp.sum((params - theta) ** 2)

        params = jax.lax.scan(
            lambda params, _: (params - 0.5 * jax.grad(proximal)(params), None), theta, None, 200
        )[0]
        return family.loss(params, (), data.outer, None)[0]

    def implicitly(steps):
        solver = implicit.cg(rtol=0.0, max_steps=steps)
        learner = imaml(
            family, optax.sgd(0.5), penalty=penalty, solver=solver, num_steps=30, num_tasks=1
        )
        state = learner.estimator.init(theta, data, jax.random.key(0))
        return learner.estimator.estimate(theta, state, data, jax.random.key(1))[0].grad

    expected, *found = jax.jit(
        lambda theta: (jax.grad(unrolled)(theta), *(implicitly(n) for n in (1, 2, 5)))
    )(theta)
    errors = [relative_error(x, expected) for x in found]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_negative_curvature_counts_as_zero_and_is_reported():
    family = parabolas()._replace(
        loss=lambda params, centre, batch, key: (-jnp.sum(params["p"] ** 2), ())
    )
    learner = imaml(family, optax.sgd(0.01), penalty=PENALTY, num_steps=2, num_tasks=2)
    theta = {"p": jnp.ones(2)}
    state = learner.estimator.init(theta, SHIFTS, jax.random.key(0))
    estimate, _ = learner.estimator.estimate(theta, state, SHIFTS, jax.random.key(1))
    assert estimate.info.nonfinite == 1
    np.testing.assert_array_equal(estimate.grad["p"], np.zeros(2))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="imaml: penalty must be positive"):
        imaml(parabolas(), optax.sgd(RATE), penalty=0.0)
    with pytest.raises(ValueError, match="imaml: num_steps must be at least 1"):
        imaml(parabolas(), optax.sgd(RATE), num_steps=0)
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1"):
        imaml(parabolas(), optax.sgd(RATE), num_tasks=0)
