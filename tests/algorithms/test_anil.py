import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core
from metaopt.algorithms import anil, boil, maml
from tests.algorithms.small_network import DATA, small_network, small_params
from tests.helpers import central_differences, ravel, relative_error

SETTINGS = {"num_steps": 2, "num_tasks": 2}


def product() -> core.TaskFamily:
    """L = ½ (a b − target)²: a is the body and b the head."""

    def loss(params, task_params, batch, key):
        return 0.5 * (params[0] * params[1] - batch) ** 2, ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: (jnp.ones(()), jnp.ones(())),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


@pytest.mark.parametrize("gradient", ["reverse", "mixed", "first_order"])
@pytest.mark.parametrize("make", [anil, boil])
def test_one_step_agrees_with_the_closed_form_of_a_product(x64, make, gradient):
    a, b, rate, support, query = 0.7, -0.4, 0.1, 1.5, -0.5
    learner = make(product(), optax.sgd(rate), num_steps=1, num_tasks=1, gradient=gradient)
    pools = core.Split(jnp.array(support), jnp.array(query))
    theta = (jnp.array(a), jnp.array(b))
    found = learner.estimator.estimate(theta, (), pools, jax.random.key(0))[0].grad

    moves, stays = (b, a) if make is anil else (a, b)
    adapted = moves - rate * stays * (a * b - support)
    error = stays * adapted - query
    second_order = gradient != "first_order"
    by_moves = error * stays * (1 - second_order * rate * stays**2)
    through_the_step = -rate * (2 * a * b - support)
    by_stays = error * (adapted + second_order * stays * through_the_step)
    expected = (by_stays, by_moves) if make is anil else (by_moves, by_stays)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("make", [anil, boil])
def test_agrees_with_central_differences_and_reaches_what_stays(x64, make):
    theta = small_params()
    estimator = make(small_network(), optax.sgd(0.05, momentum=0.9), **SETTINGS).estimator

    def estimate(theta):
        return estimator.estimate(theta, (), DATA, jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    grad = jax.jit(lambda theta: estimate(theta).grad)(theta)
    assert relative_error(ravel(grad), differences) < 1e-6
    assert all(np.abs(ravel(layer)).min() > 1e-6 for layer in grad)


def test_only_the_chosen_part_adapts(x64):
    family, theta = small_network(), small_params()
    for make, fixed, moved in ((anil, 0, 1), (boil, 1, 0)):
        adapt = jax.jit(make(family, optax.sgd(0.05), **SETTINGS).adapt)
        params = adapt(theta, (), DATA.inner, jax.random.key(5))
        assert jax.tree.structure(params) == jax.tree.structure(theta)
        np.testing.assert_array_equal(ravel(params[fixed]), ravel(theta[fixed]))
        assert np.all(ravel(params[moved]) != ravel(theta[moved]))


def test_if_everything_adapts_it_is_maml(x64):
    family, opt = small_network(), optax.sgd(0.05)

    @jax.jit
    def grads(theta, key):
        learners = (
            anil(family, opt, head=lambda params: True, **SETTINGS),
            boil(family, opt, head=lambda params: False, **SETTINGS),
            maml(family, opt, **SETTINGS),
        )
        return [
            learner.estimator.estimate(theta, (), DATA, jax.random.clone(key))[0].grad
            for learner in learners
        ]

    first, second, expected = grads(small_params(), jax.random.key(7))
    assert relative_error(first, expected) < 1e-12
    assert relative_error(second, expected) < 1e-12


def test_the_head_may_be_any_leaves_of_any_tree():
    family = core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: {"w": jnp.ones(2), "b": jnp.zeros(2)},
        batch=lambda data, task_params, key: data,
        loss=lambda params, task_params, batch, key: (
            jnp.sum((params["w"] * batch + params["b"] - 1) ** 2),
            (),
        ),
    )
    learner = anil(family, optax.adam(0.1), head=lambda params: {"w": False, "b": True})
    theta = learner.init(jax.random.key(0))
    params = learner.adapt(theta, (), jnp.array([0.5, 2.0]), jax.random.key(3))
    np.testing.assert_array_equal(params["w"], theta["w"])
    assert np.all(params["b"] != theta["b"])


def test_bad_settings_are_refused():
    family, theta = small_network(), small_params()
    with pytest.raises(ValueError, match="anil: num_steps must be at least 1"):
        anil(family, optax.sgd(0.1), num_steps=0)
    with pytest.raises(ValueError, match="boil: num_tasks must be an integer of at least 1"):
        boil(family, optax.sgd(0.1), num_tasks=0)
    with pytest.raises(ValueError, match="anil: head= leaves nothing that adapts"):
        anil(family, optax.sgd(0.1), head=lambda params: False).estimator.estimate(
            theta, (), DATA, jax.random.key(0)
        )
    with pytest.raises(ValueError, match="params is a dict, not a sequence of layers; pass head="):
        anil(family, optax.sgd(0.1)).adapt({"w": jnp.ones(2)}, (), (), jax.random.key(0))
