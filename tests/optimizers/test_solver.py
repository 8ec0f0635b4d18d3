"""Derivatives of solutions against closed forms; what all solvers promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.implicit import Status, dense, minimise
from metaopt.optimizers import (
    agd,
    entropy_map,
    euclidean_map,
    fista,
    frank_wolfe,
    implicit_solution,
    mirror_descent,
    mirror_prox,
    simplex_lmo,
)
from tests.helpers import central_differences

MATRIX = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
EIGENVALUES = np.linalg.eigvalsh(MATRIX)
TARGET = np.array([1.0, -2.0, 0.5])


def quadratic(x, theta):
    return 0.5 * x @ (jnp.asarray(MATRIX) @ x) - x @ theta


def test_the_derivative_of_a_minimiser_is_the_inverse_hessian(x64):
    solver = agd(EIGENVALUES[-1], strong_convexity=EIGENVALUES[0], tol=1e-12)
    # A zero of the gradient, so `minimise` may be told about it as well.
    ways = [
        implicit_solution(quadratic, solver),
        minimise(quadratic, solver.run, has_aux=True, solver=dense()),
    ]

    @jax.jit
    def jacobians(theta):
        found = [jax.jacrev(lambda t, w=way: w(t, jnp.zeros(3)), has_aux=True) for way in ways]
        return [jacobian(theta) for jacobian in found]

    for jacobian, info in jacobians(jnp.asarray(TARGET)):
        np.testing.assert_allclose(jacobian, np.linalg.inv(MATRIX), rtol=1e-8)
        assert info.status == Status.OK
        assert info.error <= 1e-12


def test_the_derivative_of_a_lasso_with_respect_to_its_penalty(x64):
    rng = np.random.default_rng(0)
    design, truth = rng.normal(size=(30, 8)), np.array([1.0, -1.0, 0.5] + 5 * [0.0])
    targets = design @ truth + 0.1 * rng.normal(size=30)
    smoothness = np.linalg.norm(design, 2) ** 2 / 30

    def loss(w, y):
        return jnp.sum((jnp.asarray(design) @ w - y) ** 2) / 60

    def coefficients(alpha, y):
        # The penalty is a setting of the solver, the targets belong to the problem.
        def prox(w, step):
            return jnp.sign(w) * jnp.maximum(jnp.abs(w) - alpha * step, 0)

        solver = fista(prox, smoothness, tol=1e-12, max_steps=5000)
        return implicit_solution(loss, solver, linear_solver=dense())(y, jnp.zeros(8))[0]

    y = jnp.asarray(targets)

    def both(alpha, y):
        w = coefficients(alpha, y)
        return w, w

    (by_alpha, by_y), w = jax.jit(jax.jacrev(both, argnums=(0, 1), has_aux=True))(0.1, y)
    w = np.asarray(w)
    active = np.flatnonzero(w)
    assert 2 <= len(active) < 8
    gram = design[:, active].T @ design[:, active] / 30
    expected = np.zeros(8)
    expected[active] = -np.linalg.solve(gram, np.sign(w[active]))
    np.testing.assert_allclose(by_alpha, expected, atol=1e-8)
    expected = np.zeros((8, 30))
    expected[active] = np.linalg.solve(gram, design[:, active].T / 30)
    np.testing.assert_allclose(by_y, expected, atol=1e-8)


@pytest.mark.parametrize("method", ["frank_wolfe", "mirror_descent", "mirror_prox"])
def test_derivatives_of_solutions_on_the_simplex(x64, method):
    """Of min |x − θ|² on the simplex, the projection: the active set's mean is taken off."""

    def loss(x, theta):
        return 0.5 * jnp.sum((x - theta) ** 2)

    problem, solver = loss, None
    if method == "frank_wolfe":
        solver = frank_wolfe(
            simplex_lmo(), projection=optax.projections.projection_simplex, max_steps=3000, tol=1e-9
        )
    elif method == "mirror_descent":
        solver = mirror_descent(entropy_map(), 1.0, average=False, tol=1e-10)
    else:
        problem = jax.grad(loss)
        solver = mirror_prox(entropy_map(), 0.5, average=False, tol=1e-10)
    solution = implicit_solution(problem, solver, linear_solver=dense())
    jacobian = jax.jit(jax.jacrev(lambda theta: solution(theta, jnp.ones(3) / 3)[0]))
    # One entry is 0 at the solution: (0.55, 0.45, 0).
    jacobian = jacobian(jnp.array([0.5, 0.4, -0.8]))
    expected = np.array([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(jacobian, expected, atol=1e-6)


def test_the_derivative_of_an_equilibrium(x64):
    """Of x'Ay + θ'x + |x|²/2 − |y|²/2, whose saddle point is a linear system."""
    game = jnp.array([[1.0, 2.0], [0.5, -1.0]])

    def operator(point, theta):
        x, y = point
        return game @ y + theta + x, y - game.T @ x

    solver = mirror_prox(euclidean_map(), 0.3, average=False, tol=1e-11)

    def x(theta):
        start = (jnp.zeros(2), jnp.zeros(2))
        return implicit_solution(operator, solver, linear_solver=dense())(theta, start)[0][0]

    # y = A'x and (I + A A') x = −θ.
    np.testing.assert_allclose(
        jax.jit(jax.jacrev(x))(jnp.array([0.3, -0.2])),
        -np.linalg.inv(np.eye(2) + game @ game.T),
        atol=1e-8,
    )


def test_an_unrolled_solver_is_differentiable_even_at_the_solution(x64):
    solver = agd(EIGENVALUES[-1])

    def distance(theta, start):
        state = solver.init(start)
        for _ in range(4):
            state = solver.update(lambda x: quadratic(x, theta), state)
        return jnp.sum(state.params**2)

    theta = jnp.asarray(TARGET)
    slope = jax.jit(jax.grad(distance))
    expected = central_differences(lambda t: distance(t, jnp.ones(3)), theta)
    np.testing.assert_allclose(slope(theta, jnp.ones(3)), expected, rtol=1e-6)
    # Gradients vanish at 0 for theta = 0, and lengths of them have no derivative.
    assert np.all(np.asarray(slope(0 * theta, jnp.zeros(3))) == 0)


def test_a_run_says_how_it_ended():
    def ended(scale, tol, max_steps=20):
        solver = agd(1.0, tol=tol, max_steps=max_steps)
        return solver.run(lambda x: 0.5 * scale * jnp.sum(x**2), jnp.ones(2))[1]

    assert ended(1.0, 1e-3).status == Status.OK
    assert ended(1.0, 1e-3).num_steps == 2
    assert ended(1e-3, 1e-6).status == Status.MAX_STEPS
    assert ended(1e-3, 1e-6).num_steps == 20
    # Ten times too long a step, and a gradient of inf.
    assert ended(1e5, 1e-6).status == Status.NONFINITE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: agd(1.0, tol=-1.0), "agd: tol must not be negative, got -1.0"),
        (lambda: agd(1.0, max_steps=0), "agd: max_steps must be at least 1, got 0"),
        (lambda: agd(0.0), "agd: smoothness must be positive, got 0.0"),
        (lambda: agd(1.0, strong_convexity=2.0), "strong_convexity=2.0 exceeds smoothness=1.0"),
        (lambda: fista(lambda x, s: x, -1.0), "fista: smoothness must be positive"),
        (lambda: mirror_prox(entropy_map(), 0.0), "mirror_prox: step_size must be positive"),
        (lambda: simplex_lmo(radius=0.0), "simplex_lmo: radius must be positive"),
        (
            lambda: frank_wolfe(simplex_lmo()).residual(jnp.sum, jnp.ones(2)),
            "projection=None, but the derivative",
        ),
        (lambda: entropy_map().dual(jnp.ones(())), "entropy_map: a leaf is a scalar"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
