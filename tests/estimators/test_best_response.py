import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import data
from metaopt.core import BilevelProblem, Split
from metaopt.estimators import best_response


def linear_problem():
    """y*(θ) = A θ + b exactly, so the model can be exact; f measures the distance to a target."""
    a = jnp.array([[1.0, -0.5], [0.3, 2.0], [0.0, 0.7]])
    b, target = jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, -1.0, 0.5])

    def inner_loss(params, theta, data, key):
        return 0.5 * jnp.sum((params["y"] - a @ theta["x"] - b) ** 2)

    def outer_loss(params, theta, data, key):
        return 0.5 * jnp.sum((params["y"] - target) ** 2) + 0.1 * jnp.sum(theta["x"] ** 2)

    def gradient(theta):
        x = theta["x"]
        return a.T @ (a @ x + b - target) + 0.2 * x

    return BilevelProblem(lambda key: {"y": jnp.zeros(3)}, inner_loss, outer_loss), gradient


def test_learns_the_exact_gradient_where_the_response_is_linear(x64):
    problem, gradient = linear_problem()
    estimator = best_response(problem, optax.adam(optax.cosine_decay_schedule(0.1, 800)))
    theta = {"x": jnp.array([0.4, -0.3])}

    def one(state, index):
        estimate, state = estimator.estimate(theta, state, (), jax.random.fold_in(key, index))
        return state, estimate.grad["x"]

    key = jax.random.key(0)
    state = estimator.init(theta, (), jax.random.key(1))
    state, grads = jax.jit(lambda state: jax.lax.scan(one, state, jnp.arange(400)))(state)
    np.testing.assert_allclose(grads[-1], gradient(theta), rtol=1e-6)
    # At a theta where it was never fitted, the model still knows the response.
    moved = {"x": jnp.array([0.9, 0.5])}
    estimate, _ = jax.jit(estimator.estimate)(moved, state, (), jax.random.key(2))
    np.testing.assert_allclose(estimate.grad["x"], gradient(moved), rtol=1e-4)
    assert int(estimate.info.oracles.inner_gradients) == 2


def test_a_fit_that_breaks_gives_no_gradient_and_keeps_the_state():
    problem, _ = linear_problem()
    broken = problem._replace(inner_loss=lambda *_: jnp.nan * jnp.sum(_[0]["y"]))
    estimator = best_response(broken, optax.sgd(0.1))
    theta = {"x": jnp.array([0.4, -0.3])}
    state = estimator.init(theta, (), jax.random.key(0))
    estimate, after = estimator.estimate(theta, state, (), jax.random.key(1))
    assert float(estimate.info.nonfinite) == 1
    np.testing.assert_array_equal(estimate.grad["x"], 0)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def penalised_digits():
    """Logistic regression on 150 digits; theta is the logarithm of the penalty."""
    digits = data.digits()
    images = jnp.concatenate([digits.train.inputs, digits.validation.inputs])
    images, labels = (
        images.reshape(len(images), -1),
        jnp.concatenate([digits.train.labels, digits.validation.labels]),
    )
    pools = Split((images[:150], labels[:150]), (images[150:500], labels[150:500]))

    def cross_entropy(params, pool):
        logits = pool[0] @ params["w"] + params["b"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, pool[1]).mean()

    def inner_loss(params, theta, data, key):
        return cross_entropy(params, data.inner) + jnp.exp(theta) * jnp.sum(params["w"] ** 2)

    def outer_loss(params, theta, data, key):
        return cross_entropy(params, data.outer)

    size = images.shape[1]
    init = lambda key: {"w": jnp.zeros((size, 10)), "b": jnp.zeros(10)}  # noqa: E731
    return BilevelProblem(init, inner_loss, outer_loss), pools


@pytest.mark.slow
def test_one_run_finds_the_best_penalty_of_a_grid_from_either_side():
    problem, pools = penalised_digits()
    key = jax.random.key(0)

    def trained(theta):
        """Validation loss after inner training to the end under one penalty."""
        tx = optax.adam(3e-2)
        params = problem.init(key)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(problem.inner_loss)(params, theta, pools, key)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=1500)
        return problem.outer_loss(params, theta, pools, key)

    estimator = best_response(problem, optax.adam(3e-2))
    outer = optax.adam(2e-2)

    def tuned(theta):
        def one(carry, index):
            theta, state, outer_state = carry
            estimate, state = estimator.estimate(
                theta, state, pools, jax.random.fold_in(key, index)
            )
            # For the first hundred estimates the response is fitted alone.
            grad = jnp.where(index < 100, 0.0, estimate.grad)
            update, outer_state = outer.update(grad, outer_state)
            return (theta + update, state, outer_state), None

        start = (theta, estimator.init(theta, pools, key), outer.init(theta))
        (theta, state, _), _ = jax.lax.scan(one, start, jnp.arange(1500))
        return theta, problem.outer_loss(state.response.offset, theta, pools, key)

    grid = jax.jit(jax.vmap(trained))(jnp.linspace(-12.0, 0.0, 8))
    thetas, losses = jax.jit(jax.vmap(tuned))(jnp.array([-8.0, 0.0]))
    assert np.all(np.asarray(losses) <= 1.02 * float(grid.min()))
    assert abs(float(thetas[0] - thetas[1])) < 1.0


def test_bad_settings_are_refused():
    problem, _ = linear_problem()
    with pytest.raises(ValueError, match="best_response: sigma must be positive"):
        best_response(problem, optax.sgd(0.1), sigma=0.0)
    with pytest.raises(ValueError, match="best_response: num_steps must be an integer"):
        best_response(problem, optax.sgd(0.1), num_steps=0)
