"""Derivatives of solutions against dense float64 truth, in every mode and order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.implicit import (
    cg,
    dense,
    fixed_point,
    gmres,
    minimise,
    neumann,
    normal_cg,
    nystrom,
    root,
    seeded,
)
from tests.helpers import central_differences, ravel, relative_error
from tests.implicit.problems import definite, rotated

SIZE = 4
MATRIX = definite(SIZE, condition=5.0)
THETA = {"c": np.arange(1.0, SIZE + 1), "t": np.linspace(-0.5, 0.5, SIZE)}


def loss(x, theta):
    """A quadratic and its penalties."""
    penalty = jnp.sum(jnp.exp(theta["t"]) * x**2)
    return 0.5 * x @ (jnp.asarray(MATRIX) @ x) + penalty - x @ theta["c"]


def dense_solution(theta):
    return jnp.linalg.solve(jnp.asarray(MATRIX) + 2 * jnp.diag(jnp.exp(theta["t"])), theta["c"])


def score(x):
    return jnp.sum(jnp.sin(x)) + jnp.sum(x**2)


def black_box(answer):
    """A solver that runs in Python: nothing can be differentiated through it."""

    def solve(function, start):
        del function
        return jax.pure_callback(
            lambda x: np.asarray(answer, x.dtype), start, start, vmap_method="sequential"
        )

    return solve


def theta64():
    return jax.tree.map(jnp.asarray, THETA)


def newton(function, start):
    """A loop that needs its function, for losses and their minimisers."""

    def step(carry):
        x, count = carry
        return x - jnp.linalg.solve(jax.hessian(function)(x), jax.grad(function)(x)), count + 1

    return jax.lax.while_loop(lambda c: c[1] < 3, step, (start, jnp.array(0)))[0]


def dot(x, y):
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def forward(function, theta, direction):
    return jax.jvp(function, (theta,), (direction,))[1]


def reverse(function, theta, direction):
    return dot(jax.grad(function)(theta), direction)


ORDERS = {"forward": (forward,), "reverse": (reverse,)} | {
    f"{outer.__name__} over {inner.__name__}": (inner, outer)
    for inner in (forward, reverse)
    for outer in (forward, reverse)
}


def differentiated(function, theta, orders):
    """Derivatives along a direction of its own for each order."""
    for index, order in enumerate(orders):
        direction = jax.tree.map(lambda x, i=index: jnp.sin((i + 1) * x + i), theta)
        function = lambda t, f=function, o=order, d=direction: o(f, t, d)  # noqa: E731
    return function(theta)


@functools.cache
def dense_derivative(num_orders):
    function = lambda theta: score(dense_solution(theta))  # noqa: E731
    return float(differentiated(function, theta64(), (forward,) * num_orders))


@pytest.mark.parametrize("orders", ORDERS)
def test_derivatives_of_first_and_second_order_are_exact(orders, x64):
    answer = dense_solution(theta64())
    find = minimise(loss, lambda f, start: answer, solver=cg(rtol=1e-15))
    function = lambda theta: score(find(theta, jnp.zeros(SIZE)))  # noqa: E731
    actual = jax.jit(lambda t: differentiated(function, t, ORDERS[orders]))(theta64())
    expected = dense_derivative(len(ORDERS[orders]))
    assert abs(actual / expected - 1) < 1e-12
    assert abs(1.1 * actual / expected - 1) > 1e-2


def test_gradients_agree_with_central_differences_of_the_solution(x64):
    find = minimise(loss, newton)
    value = lambda theta: score(find(theta, jnp.zeros(SIZE)))  # noqa: E731
    expected = central_differences(value, theta64())
    assert relative_error(jax.jit(jax.grad(value))(theta64()), expected) < 1e-7


def test_gradients_and_solutions_are_vmapped(x64):
    find = minimise(loss, newton, solver=cg(rtol=1e-12))
    batch = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, -x]), theta64())
    value = lambda solution: jax.value_and_grad(lambda t: score(solution(t)))  # noqa: E731
    actual = jax.jit(jax.vmap(value(lambda t: find(t, jnp.zeros(SIZE)))))(batch)
    expected = jax.vmap(value(dense_solution))(batch)
    assert relative_error(actual, expected) < 1e-9


def test_the_solver_is_a_black_box(x64):
    answer = np.asarray(dense_solution(theta64()))
    find = minimise(loss, black_box(answer), solver=cg(rtol=1e-13))
    actual = jax.grad(lambda t: score(find(t, jnp.zeros(SIZE))))(theta64())
    expected = jax.grad(lambda t: score(dense_solution(t)))(theta64())
    assert relative_error(actual, expected) < 1e-11


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scalar_and_a_vector_of_one_unknown(shape, x64):
    # The positive square root of theta: 1 / (2 √θ).
    find = root(
        lambda x, theta: x**2 - theta, lambda f, start: jnp.full(shape, 3.0), structure="symmetric"
    )
    theta = jnp.full(shape, 9.0)
    grad = jax.grad(lambda t: jnp.sum(find(t, jnp.ones(shape))))(theta)
    np.testing.assert_allclose(grad, np.full(shape, 1 / 6), rtol=1e-12)
    assert grad.shape == shape


def test_unknowns_and_theta_are_any_tree(x64):
    def tree_loss(x, theta):
        joined = jnp.concatenate([x["a"][None], x["b"][0]])
        both = {"c": jnp.concatenate([theta[0][None], theta[1]["c"]]), "t": theta[1]["t"]}
        return loss(joined, both)

    x = np.asarray(dense_solution(theta64()))
    answer = {"a": jnp.asarray(x[0]), "b": (jnp.asarray(x[1:]), None)}
    find = minimise(tree_loss, lambda f, start: answer, solver=cg(rtol=1e-14))
    theta = (jnp.asarray(THETA["c"][0]), {"c": jnp.asarray(THETA["c"][1:]), "t": theta64()["t"]})
    start = jax.tree.map(jnp.zeros_like, answer)
    grad = jax.grad(lambda t: sum(score(v) for v in jax.tree.leaves(find(t, start))))(theta)
    expected = jax.grad(lambda t: score(dense_solution(t)))(theta64())
    assert relative_error(grad[0], expected["c"][0]) < 1e-11
    assert relative_error(grad[1]["c"], expected["c"][1:]) < 1e-11
    assert relative_error(grad[1]["t"], expected["t"]) < 1e-11


def test_closures_over_traced_values_are_differentiated(x64):
    def value(outside, theta):
        find = minimise(lambda x, t: loss(x, {"c": outside, "t": t}), newton)
        return score(find(theta, jnp.zeros(SIZE)))

    theta = theta64()
    actual = jax.jit(jax.grad(value, argnums=(0, 1)))(theta["c"], theta["t"])
    expected = jax.grad(lambda t: score(dense_solution(t)))(theta)
    assert relative_error(actual, (expected["c"], expected["t"])) < 1e-9


SOLVERS = {
    "gmres": gmres(rtol=1e-12),
    "normal_cg": normal_cg(rtol=1e-13),
    "dense": dense(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_roots_that_are_not_gradients_need_the_transposed_system(name, x64):
    matrix = jnp.asarray(rotated(SIZE))

    def residual(x, theta):
        return matrix @ x + 0.1 * jnp.tanh(x) - theta

    def solve(function, start):
        step = lambda _, x: x - jnp.linalg.solve(jax.jacfwd(function)(x), function(x))  # noqa: E731
        return jax.lax.fori_loop(0, 8, step, start)

    find = root(residual, solve, solver=SOLVERS[name])
    theta = jnp.asarray(THETA["c"])
    x = find(theta, jnp.zeros(SIZE))
    jacobian = np.asarray(matrix) + 0.1 * np.diag(1 / np.cosh(x) ** 2)
    expected = np.linalg.inv(jacobian)
    solution = lambda t: find(t, jnp.zeros(SIZE))  # noqa: E731
    both = jax.jit(lambda t: (jax.jacrev(solution)(t), jax.jacfwd(solution)(t)))(theta)
    for actual in both:
        assert relative_error(actual, expected) < 1e-9
        assert relative_error(actual, expected.T) > 1e-2


def test_a_lasso_through_its_proximal_fixed_point(x64):
    """30 features; theta is the logarithm of the penalty."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 30))
    truth = rng.normal(size=30) * (rng.random(30) < 0.3)
    t = jnp.asarray(x @ truth + 0.3 * rng.normal(size=50))
    x, valid = jnp.asarray(x), jnp.asarray(rng.normal(size=(20, 30)))
    step = 50 / jnp.linalg.norm(x, 2) ** 2

    def update(w, theta):
        w = w - step * x.T @ (x @ w - t) / 50
        return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step * jnp.exp(theta), 0)

    def iterate(function, start):
        return jax.lax.fori_loop(0, 5000, lambda _, w: function(w), start)

    def value(solution):
        return lambda theta: jnp.mean((valid @ (solution(theta) - truth)) ** 2)

    find = fixed_point(update, iterate)
    theta = jnp.array(-2.0)
    solution = lambda theta: find(theta, jnp.zeros(30))  # noqa: E731
    expected = central_differences(value(solution), theta, step=1e-4)
    actual = jax.jit(jax.grad(value(solution)))(theta)
    assert 3 < np.sum(np.asarray(solution(theta)) != 0) < 30
    assert relative_error(actual, expected) <= 1e-3
    backward = fixed_point(update, iterate, solver=neumann(num_terms=2000, step_size=1.0))
    series = jax.jit(jax.grad(value(lambda theta: backward(theta, jnp.zeros(30)))))(theta)
    assert relative_error(series, expected) <= 1e-3


def test_integers_and_keys_pass_as_theta_and_as_aux(x64):
    def noisy_loss(x, theta):
        noise = 0.1 * jax.random.normal(theta["key"], x.shape)
        return loss(x + noise, {"c": theta["c"], "t": theta["t"]}) * theta["copies"]

    def solve(function, start):
        x = newton(function, start)
        aux = {
            "count": jnp.array([3, -7]),
            "narrow": jnp.array(-5, jnp.int8),
            "flag": x[0] > 0,
            "key": jax.random.key(11),
            "value": function(x),
        }
        return x, aux

    find = minimise(noisy_loss, solve, has_aux=True)
    theta = theta64() | {"copies": jnp.array(2), "key": jax.random.key(3)}

    def value(theta):
        x, aux = find(theta, jnp.zeros(SIZE))
        return score(x) + 0 * aux["value"], aux

    (_, aux), grad = jax.jit(jax.value_and_grad(value, has_aux=True, allow_int=True))(theta)
    np.testing.assert_array_equal(aux["count"], [3, -7])
    assert aux["count"].dtype == jnp.int64
    assert (aux["narrow"], aux["narrow"].dtype) == (-5, jnp.int8)
    assert aux["flag"].dtype == jnp.bool_
    np.testing.assert_array_equal(
        jax.random.key_data(aux["key"]), jax.random.key_data(jax.random.key(11))
    )
    assert grad["copies"].dtype == grad["key"].dtype == jax.dtypes.float0

    noise = 0.1 * jax.random.normal(jax.random.key(3), (SIZE,))
    expected = jax.grad(lambda t: score(dense_solution(t) - noise))(theta64())
    assert relative_error((grad["c"], grad["t"]), (expected["c"], expected["t"])) < 1e-9

    batched = jax.jit(jax.vmap(lambda c: find(theta | {"c": c}, jnp.zeros(SIZE))[1]["count"]))
    np.testing.assert_array_equal(batched(jnp.ones((2, SIZE))), [[3, -7], [3, -7]])


def test_a_derivative_with_respect_to_the_start_is_refused():
    find = minimise(loss, newton)
    theta, start = theta64(), jnp.zeros(SIZE)
    value = lambda start: score(find(theta, start))  # noqa: E731
    for take in (jax.grad, jax.jit(jax.grad(value)), jax.jacfwd(value)):
        function = jax.grad(value) if take is jax.grad else take
        with pytest.raises(ValueError, match="minimise: a derivative with respect to start"):
            function(start)
    # A start that depends on theta is fine once it is declared constant.
    both = lambda t: score(find(t, jax.lax.stop_gradient(t["c"])))  # noqa: E731
    constant = lambda t: score(find(t, theta["c"]))  # noqa: E731
    np.testing.assert_allclose(
        ravel(jax.grad(both)(theta)), ravel(jax.grad(constant)(theta)), rtol=1e-5
    )


def test_a_failed_linear_solve_gives_nan_unless_told_otherwise(x64):
    def saddle(x, theta):
        return 0.5 * (x[0] ** 2 - x[1] ** 2) - x @ theta

    answer = lambda f, start: jnp.array([1.0, -1.0])  # noqa: E731
    theta = jnp.ones(2)
    grads = [
        jax.grad(lambda t, f=find: jnp.sum(f(t, jnp.zeros(2)) ** 2))(theta)
        for find in (
            minimise(saddle, answer),
            minimise(saddle, answer, on_failure="ignore"),
            minimise(saddle, answer, solver=dense()),
            minimise(saddle, answer, solver=cg(max_steps=1)),
        )
    ]
    assert np.isnan(np.asarray(grads[0])).all()
    assert np.isfinite(np.asarray(grads[1])).all()
    np.testing.assert_allclose(grads[2], [2, 2], rtol=1e-12)  # 2x / ±1
    assert np.isnan(np.asarray(grads[3])).all()


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_theta_need_not_move_the_residual_of_every_unknown(x64, mode):
    def coupled(x, theta):
        return (x["a"] - theta) ** 2 + (x["b"] - 1) ** 2 + x["a"] * x["b"] / 2

    def closed_form(f, start):
        # 2 (a - θ) + b / 2 = 0 and 2 (b - 1) + a / 2 = 0.
        a = (2 * 0.7 - 0.5) / (2 - 0.125)
        return {"a": jnp.asarray(a), "b": jnp.asarray(1 - a / 4)}

    find = minimise(coupled, closed_form)
    slope = mode(lambda theta: find(theta, {"a": 0.0, "b": 0.0})["a"])(0.7)
    np.testing.assert_allclose(slope, 2 / (2 - 0.125), rtol=1e-8)


def test_a_randomised_solver_is_seeded(x64):
    solver = seeded(nystrom(rank=SIZE, damping=1e-7), jax.random.key(5))
    find = minimise(loss, newton, solver=solver)
    actual = jax.jit(jax.grad(lambda t: score(find(t, jnp.zeros(SIZE)))))(theta64())
    expected = jax.grad(lambda t: score(dense_solution(t)))(theta64())
    assert relative_error(actual, expected) < 1e-6


def test_bad_settings_are_refused():
    find = minimise(loss, newton)
    for function, message in [
        (lambda: root(loss, newton, solver=cg()), "root: this solver needs a symmetric operator"),
        (lambda: root(loss, newton, structure="odd"), "structure='odd' is unknown"),
        (lambda: minimise(loss, newton, on_failure="raise"), "on_failure='raise' is unknown"),
        (lambda: find(theta64(), jnp.arange(4)), "minimise: start is int32"),
        (
            lambda: root(lambda x, t: jnp.sum(x), newton)(theta64(), jnp.zeros(2)),
            "root: the optimality residual has",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            function()
