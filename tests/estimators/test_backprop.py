import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, unroll
from metaopt.core import StepInfo, System
from metaopt.estimators import backprop
from tests.estimators import toys
from tests.helpers import central_differences, relative_error

THETA = jnp.array([0.3, -0.2])


@pytest.mark.parametrize("objective", ["mean", "last", "min"])
def test_agrees_with_central_differences(x64, objective):
    theta = jnp.asarray(THETA, jnp.float64)
    loss = unroll.meta_loss(toys.nonlinear(), horizon=7, objective=objective)
    expected = central_differences(lambda th: loss(th, (), jax.random.key(0)), theta)
    estimator = backprop(toys.nonlinear(), horizon=7, num_tasks=2, objective=objective)
    estimate, _ = estimator.estimate(theta, (), (), jax.random.key(1))
    assert relative_error(estimate.grad, expected) < 1e-6


def test_agrees_with_the_closed_form_of_a_linear_system():
    estimate, _ = backprop(toys.linear(), horizon=9).estimate(THETA, (), (), jax.random.key(2))
    np.testing.assert_allclose(estimate.grad, toys.linear_gradient(9), rtol=1e-5)


@pytest.mark.parametrize("remat", ["none", "step", "nested"])
def test_remat_does_not_change_the_gradient(remat):
    estimator = backprop(toys.nonlinear(), horizon=12, num_tasks=1, remat=remat)
    estimate, _ = estimator.estimate(THETA, (), (), jax.random.key(3))
    plain = jax.grad(unroll.meta_loss(toys.nonlinear(), horizon=12))(THETA, (), jax.random.key(4))
    np.testing.assert_allclose(estimate.grad, plain, rtol=1e-5)


def test_drawn_horizon_gives_the_gradient_of_that_length():
    estimator = backprop(toys.linear(), horizon=unroll.log_uniform(2, 9), num_tasks=2)
    estimate, _ = jax.jit(estimator.estimate)(THETA, (), (), jax.random.key(5))
    length = int(estimate.info.inner_steps) // 2
    assert 2 <= length < 9
    np.testing.assert_allclose(estimate.grad, toys.linear_gradient(length), rtol=1e-5)


def test_a_task_whose_gradient_is_not_finite_contributes_zero():
    def init(theta, data, key, *, num_steps=None):
        return jax.random.bernoulli(key).astype(theta.dtype)

    def step(theta, state, data, key):
        return state, StepInfo(jnp.sqrt(state * jnp.sum(theta**2)), jnp.array(False))

    estimator = backprop(System(init, step), horizon=1, num_tasks=32)
    estimate, _ = estimator.estimate(THETA, (), (), jax.random.key(6))
    # Where the state is 0 the derivative of the square root is infinite times zero.
    healthy = 1 - estimate.info.nonfinite
    assert 0 < healthy < 1
    np.testing.assert_allclose(estimate.grad, healthy * THETA / jnp.linalg.norm(THETA), rtol=1e-5)


def test_gradients_of_the_inner_gradient_can_be_chosen(x64):
    problem = core.BilevelProblem(
        init=lambda key: jnp.zeros(2),
        inner_loss=lambda params, theta, data, key: jnp.sum(
            (params - 1) ** 2 + jnp.exp(theta["penalty"]) * params**2
        ),
        outer_loss=lambda params, theta, data, key: jnp.sum((params - theta["aim"]) ** 2),
    )
    system = core.bilevel_training(problem, optax.sgd(0.1))
    theta = {"penalty": jnp.array([0.1, -0.3]), "aim": jnp.array(0.4)}

    def estimate(gradient):
        estimator = backprop(system, horizon=3, num_tasks=1, gradient=gradient)
        return jax.jit(estimator.estimate)(theta, (), (), jax.random.key(8))[0]

    reverse, mixed = estimate("reverse"), estimate("mixed")
    assert relative_error(mixed.grad, reverse.grad) < 1e-12
    assert mixed.info.oracles == reverse.info.oracles
    with pytest.raises(ValueError, match=r"backprop: gradient='first_order' leaves theta\['pen"):
        estimate("first_order")
    meta_loss = unroll.meta_loss(system, horizon=3)
    with pytest.raises(ValueError, match="takes its inner gradients by itself; drop gradient="):
        backprop(meta_loss, gradient="mixed")


def test_first_order_maml_is_the_query_gradient_at_the_adapted_parameters(x64):
    curvature = jnp.array([1.0, 3.0])

    def loss(params, task_params, batch, key):
        return 0.5 * jnp.sum(curvature * (params - batch) ** 2), None

    family = core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros(2),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )
    theta, data = jnp.array([0.3, -0.2]), core.Split(jnp.zeros(2), jnp.ones(2))
    estimator = backprop(
        core.adaptation(family, optax.sgd(0.1)),
        horizon=2,
        num_tasks=1,
        objective="last",
        gradient="first_order",
    )
    estimate, _ = jax.jit(estimator.estimate)(theta, (), data, jax.random.key(9))
    adapted = (1 - 0.1 * curvature) ** 2 * theta
    np.testing.assert_allclose(estimate.grad, curvature * (adapted - 1), rtol=1e-12)
    assert estimate.info.oracles.hessian_products == 0


def test_a_plain_function_is_a_problem_too():
    def loss(theta, data, key):
        return jnp.sum(data * theta**2)

    data = jnp.array([2.0, 3.0])
    estimate, _ = backprop(loss).estimate(THETA, (), data, jax.random.key(7))
    np.testing.assert_allclose(estimate.grad, 2 * data * THETA, rtol=1e-6)
    with pytest.raises(ValueError, match="backprop: a meta-loss function has its own horizon"):
        backprop(loss, horizon=3)
    with pytest.raises(ValueError, match="backprop: a System needs horizon="):
        backprop(toys.linear())
