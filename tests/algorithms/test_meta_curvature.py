import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core
from metaopt.algorithms import MetaCurvatureTheta, maml, meta_curvature
from tests.algorithms.tanh_network import (
    FAMILY,
    estimate,
    params,
    perturbed,
)
from tests.helpers import central_differences, relative_error

SHAPES = {"matrix": (3, 4), "kernel": (2, 2, 3, 4), "bias": (4,), "scalar": ()}
SETTINGS = {"num_steps": 2, "num_tasks": 2}


def normal(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def slopes() -> core.TaskFamily:
    """A loss whose gradient is the batch."""

    def loss(params, task_params, batch, key):
        return sum(jnp.vdot(params[name], batch[name]) for name in params), ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: normal(0),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


@pytest.mark.compiles
@pytest.mark.parametrize(
    "gradient", ["reverse", pytest.param("first_order", marks=pytest.mark.slow)]
)
def test_identity_factors_are_maml(x64, gradient):
    learner = meta_curvature(FAMILY, optax.sgd(0.05), gradient=gradient, **SETTINGS)
    identity = learner.init(jax.random.key(0))
    ours = estimate(learner, identity._replace(params=params()))
    theirs = estimate(maml(FAMILY, optax.sgd(0.05), gradient=gradient, **SETTINGS), params())
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert relative_error(ours.grad.params, theirs.grad) < 1e-12
    assert all(np.any(x != 0) for x in jax.tree.leaves(ours.grad.factors))


def test_a_step_is_the_kronecker_product_of_the_factors_times_the_gradient(x64):
    learner = meta_curvature(slopes(), optax.sgd(0.1), num_steps=1)
    theta = perturbed(learner.init(jax.random.key(0)))
    grads = normal(1)
    adapted = jax.jit(learner.adapt)(theta, (), grads, jax.random.key(0))

    for name, factors in theta.factors.items():
        if len(factors) == 1:
            matrix = np.diag(np.ravel(factors[0]))
        else:
            matrix = np.asarray(factors[-1]).T
            for factor in factors[-2::-1]:
                matrix = np.kron(factor, matrix)
        step = (matrix @ np.ravel(grads[name])).reshape(SHAPES[name])
        np.testing.assert_allclose(adapted[name], theta.params[name] - 0.1 * step, rtol=1e-10)
    assert [len(theta.factors[name]) for name in SHAPES] == [2, 3, 1, 1]
    assert theta.factors["kernel"][0].shape == (4, 4)


def test_the_inverse_hessian_as_factor_solves_least_squares_in_one_step(x64):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))

    def loss(params, task_params, batch, key):
        return 0.5 * jnp.sum((inputs @ params - targets) ** 2), ()

    family = slopes()._replace(init=lambda task_params, key: jnp.zeros((3, 2)), loss=loss)
    learner = meta_curvature(family, optax.sgd(1.0), num_steps=1)
    factors = (jnp.linalg.inv(inputs.T @ inputs), jnp.eye(2))
    theta = MetaCurvatureTheta(jnp.asarray(rng.normal(size=(3, 2))), factors)
    adapted = learner.adapt(theta, (), (), jax.random.key(0))
    np.testing.assert_allclose(adapted, np.linalg.lstsq(inputs, targets)[0], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["reverse", "mixed"])
def test_agrees_with_central_differences(x64, gradient):
    learner = meta_curvature(FAMILY, optax.sgd(0.05, momentum=0.9), gradient=gradient, **SETTINGS)
    theta = perturbed(learner.init(jax.random.key(0)))

    def loss(theta):
        return learner.estimator.estimate(theta, (), (), jax.random.key(14))[0].loss

    assert relative_error(estimate(learner, theta).grad, central_differences(loss, theta)) < 1e-6


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="meta_curvature: num_steps must be at least 1"):
        meta_curvature(FAMILY, optax.sgd(0.1), num_steps=0)
    with pytest.raises(ValueError, match="meta_curvature: num_tasks"):
        meta_curvature(FAMILY, optax.sgd(0.1), num_tasks=0)
