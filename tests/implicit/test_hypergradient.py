"""The explicit hypergradient: exact at the solution, warm-startable, honest about its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.implicit import (
    Status,
    cg,
    dense,
    gmres,
    hypergradient,
    identity,
    neumann,
    nystrom,
    seeded,
)
from tests.helpers import relative_error
from tests.implicit.problems import ridge, rotated


def hyper(solver, params=None, start=None):
    """Compiled hypergradient of the ridge problem at its solution, or at `params`."""
    problem = ridge()
    params = problem.params if params is None else params

    def run(params, theta, start):
        return hypergradient(
            problem.outer,
            jax.grad(problem.inner),
            params,
            theta,
            solver=solver,
            start=start,
            structure="psd",
        )

    return jax.jit(run)(jnp.asarray(params), jnp.asarray(problem.theta), start)


@pytest.mark.compiles
def test_the_hypergradient_is_the_derivative_through_the_solution(x64):
    inner, outer, theta, params, hessian, exact = ridge()
    for solver in (None, dense()):
        value, grad, info = hyper(solver)
        assert relative_error(grad, exact) < 1e-9
        assert relative_error(1.1 * grad, exact) > 1e-2
        np.testing.assert_allclose(value, outer(params, theta), rtol=1e-12)
        u = np.linalg.solve(hessian, jax.grad(outer)(jnp.asarray(params), theta))
        assert relative_error(info.u, u) < 1e-9
        assert info.stationarity < 1e-13
        assert info.residual < 1e-9
        assert info.status == Status.OK


def test_the_start_saves_steps_and_does_not_change_the_result(x64):
    exact = ridge().exact
    cold = hyper(cg(rtol=1e-8))
    warm = hyper(cg(rtol=1e-8), start=cold[2].u * (1 + 1e-6))
    assert warm[2].num_steps < cold[2].num_steps
    assert relative_error(warm[1], exact) < 1e-6
    far = hyper(cg(rtol=1e-8), start=jnp.ones(40))
    assert relative_error(far[1], exact) < 1e-6
    # The start is no input of the derivative, even where it depends on theta.
    assert relative_error(hyper(cg(rtol=0.0, max_steps=1), start=cold[2].u)[1], exact) < 1e-6


def test_errors_of_point_and_solver_are_reported(x64):
    inner, outer, theta, params, hessian, _ = ridge()
    params = jnp.asarray(params + 0.1)
    _, _, info = hyper(cg(rtol=0.0, max_steps=3), params)
    np.testing.assert_allclose(
        info.stationarity, np.linalg.norm(jax.grad(inner)(params, theta)), rtol=1e-10
    )
    b = jax.grad(outer)(params, theta)
    expected = np.linalg.norm(hessian @ info.u - b) / np.linalg.norm(b)
    np.testing.assert_allclose(info.residual, expected, rtol=1e-10)
    # With damping, the residual is that of the equation without.
    _, _, info = hyper(cg(damping=0.5), params)
    expected = np.linalg.norm(0.5 * info.u) / np.linalg.norm(b)
    np.testing.assert_allclose(info.residual, expected, rtol=1e-8)


@pytest.mark.compiles
def test_a_neumann_series_is_the_reverse_of_the_last_steps(x64):
    inner, outer, theta, params, hessian, _ = ridge()
    step_size = float(1 / np.linalg.eigvalsh(hessian)[-1])
    for terms in (0, 1, 6):

        def trained(theta, terms=terms):
            y = params
            for _ in range(terms + 1):
                y = y - step_size * jax.grad(inner)(y, theta)
            return outer(y, theta)

        unrolled = jax.jit(jax.grad(trained))(jnp.asarray(theta))
        _, grad, info = hyper(neumann(num_terms=terms, step_size=step_size))
        np.testing.assert_allclose(grad, unrolled, rtol=0, atol=1e-12)
        assert info.num_products == terms
    series = hyper(neumann(num_terms=0, step_size=step_size))[1]
    np.testing.assert_array_equal(series, hyper(identity(scale=step_size))[1])


def test_at_convergence_it_equals_the_unrolled_gradient(x64):
    inner, outer, theta, _, hessian, _ = ridge()
    step_size = float(1 / np.linalg.eigvalsh(hessian)[-1])

    def train(theta):
        step = lambda y, _: (y - step_size * jax.grad(inner)(y, theta), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(40), None, length=600)[0]

    unrolled, params = jax.jit(
        lambda theta: (jax.grad(lambda t: outer(train(t), t))(theta), train(theta))
    )(jnp.asarray(theta))
    assert relative_error(hyper(dense(), params)[1], unrolled) < 1e-8


def test_truncation_errors_of_the_solvers_on_ridge(x64):
    """Steps as in the published comparison; the bands leave room for another draw of the data."""
    _, _, theta, _, hessian, exact = ridge()
    direct = 0.2 * theta
    step_size = float(1 / np.linalg.eigvalsh(hessian)[-1])

    def error(solver):
        indirect = np.asarray(hyper(solver)[1] - direct), np.asarray(exact - direct)
        cosine = indirect[0] @ indirect[1] / np.prod(np.linalg.norm(indirect, axis=1))
        return np.linalg.norm(indirect[0] - indirect[1]) / np.linalg.norm(indirect[1]), cosine

    assert error(cg(rtol=0.0, max_steps=20))[0] < 1e-4
    assert 0.1 < error(neumann(num_terms=20, step_size=step_size))[0] < 0.4
    size, cosine = error(identity())
    assert size > 0.5
    assert cosine > 0.8


def test_nystrom_explodes_where_curvature_has_full_rank(x64):
    """The documented failure: ridge with 40 unknowns, ten columns."""
    exact = ridge().exact
    for damping, bar in ((0.1, 0.5), (0.01, 1.0), (0.001, 10.0)):
        _, grad, info = hyper(seeded(nystrom(rank=10, damping=damping), jax.random.key(0)))
        assert relative_error(grad, exact) > bar
        assert info.residual > 1  # and it is reported


def test_theta_may_hold_integers_and_keys_and_conditions_need_not_be_gradients(x64):
    matrix = jnp.asarray(rotated(5))

    def residual(params, theta):
        noise = jax.random.normal(theta["key"], (5,))
        return matrix @ params["x"] - theta["count"] * theta["c"] - noise

    def optimality(params, theta):
        return {"x": residual(params, theta)}

    def outer(params, theta):
        noise = jax.random.normal(theta["key"], (5,))
        return jnp.sum(params["x"] ** 3) + theta["c"] @ noise

    key, c = jax.random.key(4), jnp.arange(5.0)
    theta = {"key": key, "count": jnp.array(3), "c": c}
    noise = jax.random.normal(jax.random.key(4), (5,))
    solution = lambda c: jnp.linalg.solve(matrix, 3 * c + noise)  # noqa: E731
    _, grad, info = jax.jit(
        lambda theta: hypergradient(
            outer,
            optimality,
            {"x": solution(theta["c"])},
            theta,
            solver=gmres(),
            structure="general",
        )
    )(theta)
    expected = jax.grad(lambda c: jnp.sum(solution(c) ** 3) + c @ noise)(c)
    assert relative_error(grad["c"], expected) < 1e-9
    assert grad["key"].dtype == grad["count"].dtype == jax.dtypes.float0
    assert info.status == Status.OK
    assert jax.tree.structure(info.u) == jax.tree.structure({"x": 0})


def test_many_tasks_at_once_are_each_right(x64):
    problems = [ridge(dim=6, level=level) for level in (-2.0, -1.0, 0.5)]

    def one(params, theta):
        return hypergradient(
            problems[0].outer, jax.grad(problems[0].inner), params, theta, solver=cg(rtol=1e-12)
        )[1]

    params, theta, exact = (
        jnp.stack([jnp.asarray(getattr(p, name)) for p in problems])
        for name in ("params", "theta", "exact")
    )
    assert relative_error(jax.jit(jax.vmap(one))(params, theta), exact) < 1e-9


def test_float32_is_kept_and_accurate():
    value, grad, info = hyper(None)
    assert {x.dtype for x in (value, grad, info.u)} == {jnp.dtype(jnp.float32)}
    assert info.status == Status.OK
    assert relative_error(grad, ridge().exact) < 1e-3


def test_bad_arguments_are_refused():
    def residual(params, theta):
        return params - theta

    x = jnp.ones(2)
    outer = lambda params, theta: jnp.sum(params)  # noqa: E731
    with pytest.raises(ValueError, match="hypergradient: this solver needs a symmetric operator"):
        hypergradient(outer, residual, x, x, structure="general")
    with pytest.raises(ValueError, match="hypergradient: the optimality residual has"):
        hypergradient(outer, outer, x, x)
