import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.implicit import dense
from metaopt.optimizers import (
    dual_averaging,
    entropy_map,
    euclidean_map,
    implicit_solution,
    mirror_descent,
)


def states_of(solver, loss, start, num_steps):
    """Every state of a solver, time axis first."""

    def step(state, _):
        state = solver.update(loss, state)
        return state, state

    return jax.jit(lambda x: jax.lax.scan(step, solver.init(x), length=num_steps)[1])(start)


def test_repeats_a_transcription_with_a_projection_and_a_falling_step_size(x64):
    target, x = np.array([2.0, -0.5, 0.1]), np.array([0.2, 0.3, -0.4])
    solver = dual_averaging(
        euclidean_map(lambda x: jnp.clip(x, -1, 1)),
        lambda t: 0.3 / jnp.sqrt(jnp.asarray(t, float)),
    )
    states = states_of(solver, lambda x: jnp.sum((x - target) ** 2), jnp.asarray(x), 6)
    start, total, points = x, np.zeros(3), []
    for t in range(1, 7):
        points.append(x)
        gradient = 2 * (x - target)
        total = total + gradient
        eta = 0.3 / np.sqrt(t)
        error = np.linalg.norm(x - np.clip(x - eta * gradient, -1, 1)) / eta
        np.testing.assert_allclose(states.error[t - 1], error, rtol=1e-12)
        x = np.clip(start - eta * total, -1, 1)
    np.testing.assert_allclose(states.total[-1], total, rtol=1e-12)
    np.testing.assert_allclose(states.average[-1], np.mean(points, axis=0), rtol=1e-12)


@pytest.mark.parametrize("geometry", [euclidean_map(), entropy_map()], ids=["space", "simplex"])
def test_is_mirror_descent_where_nothing_is_projected_and_on_simplices(x64, geometry):
    costs = np.random.default_rng(0).normal(size=5)

    def loss(x):
        return jnp.sum(costs * x) + 0.5 * jnp.sum(x**2)

    start = jnp.ones(5) / 5
    ours = states_of(dual_averaging(geometry, 0.3), loss, start, 8)
    theirs = states_of(mirror_descent(geometry, 0.3), loss, start, 8)
    np.testing.assert_allclose(ours.average, theirs.average, rtol=1e-12)


def test_remembers_what_a_projection_took_away(x64):
    """In [-1, 1] with gradients −1, −1, −1, +1: the way back begins outside."""
    slopes = jnp.array([-1.0, -1.0, -1.0, 1.0, 0.0])
    box = euclidean_map(lambda x: jnp.clip(x, -1, 1))

    def points(solver):
        def step(state, slope):
            state = solver.update(lambda x: slope * x, state)
            return state, state.average * state.count

        sums = jax.lax.scan(step, solver.init(jnp.zeros(())), slopes)[1]
        return jnp.diff(sums, prepend=0)

    lazy, agile = jax.jit(
        lambda: [points(make(box, 1.0)) for make in (dual_averaging, mirror_descent)]
    )()
    np.testing.assert_allclose(lazy, [0, 1, 1, 1, 1], atol=1e-12)
    np.testing.assert_allclose(agile, [0, 1, 1, 1, 0], atol=1e-12)


def test_stays_below_the_bound(x64):
    n, num_steps = 50, 400
    costs = np.random.default_rng(0).uniform(-1, 1, size=n)
    pieces = jnp.asarray(np.stack([costs, -0.5 * costs, np.roll(costs, 1)]))
    eta = np.sqrt(2 * np.log(n) / num_steps)

    def loss(x):
        return jnp.max(pieces @ x)

    states = states_of(dual_averaging(entropy_map(), eta), loss, jnp.ones(n) / n, num_steps)
    mixtures = np.random.default_rng(1).dirichlet(np.ones(3), size=20_000)
    lower = np.max(np.min(mixtures @ np.asarray(pieces), axis=1))
    excess = float(loss(states.average[-1])) - lower
    # Twice that of mirror descent for subgradients of at most 1.
    assert excess <= 2 * np.sqrt(2 * np.log(n) / num_steps)


@pytest.mark.compiles
def test_finds_projections_onto_the_simplex_and_their_derivatives(x64):
    simplex = optax.projections.projection_simplex
    solver = dual_averaging(euclidean_map(simplex), 0.5, average=False, tol=1e-9)
    nearest = implicit_solution(
        lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2), solver, linear_solver=dense()
    )
    theta = jnp.array([0.5, 0.4, -0.8])
    (weights, info), slopes = jax.jit(
        lambda theta: (
            nearest(theta, jnp.ones(3) / 3),
            jax.jacobian(lambda t: nearest(t, jnp.ones(3) / 3)[0])(theta),
        )
    )(theta)
    np.testing.assert_allclose(weights, [0.55, 0.45, 0.0], atol=1e-7)
    np.testing.assert_allclose(slopes[:2], [[0.5, -0.5, 0], [-0.5, 0.5, 0]], atol=1e-6)
    assert info.error <= 1e-9


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="dual_averaging: step_size must be positive, got 0"):
        dual_averaging(euclidean_map(), 0.0)
    with pytest.raises(ValueError, match="dual_averaging: max_steps must be at least 1"):
        dual_averaging(euclidean_map(), 1.0, max_steps=0)
