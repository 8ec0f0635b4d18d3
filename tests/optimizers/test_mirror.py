import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.optimizers import entropy_map, euclidean_map, mirror_descent, mirror_prox


def answers(solver, problem, start, num_steps):
    """Every state of a solver, time axis first."""

    def step(state, _):
        state = solver.update(problem, state)
        return state, state

    return jax.jit(lambda x: jax.lax.scan(step, solver.init(x), length=num_steps)[1])(start)


def normalised(w):
    return w / w.sum(axis=-1, keepdims=True)


def test_on_the_simplex_it_is_the_exponentiated_gradient(x64):
    rng = np.random.default_rng(0)
    costs, w = rng.normal(size=(3, 5)), normalised(rng.uniform(size=(3, 5)))
    start, points, eta = jnp.asarray(w), [], 0.7
    for _ in range(6):
        points.append(w)
        w = normalised(w * np.exp(-eta * (costs + w)))
    states = answers(
        mirror_descent(entropy_map(), eta),
        lambda x: jnp.sum(jnp.asarray(costs) * x) + 0.5 * jnp.sum(x**2),
        start,
        6,
    )
    np.testing.assert_allclose(np.exp(states.dual[-1]), w, rtol=1e-12)
    np.testing.assert_allclose(states.average[-1], np.mean(points, axis=0), rtol=1e-12)


def test_stays_below_the_bound(x64):
    n, num_steps, bound = 50, 400, 1.0
    costs = np.random.default_rng(0).uniform(-bound, bound, size=n)
    # A piecewise linear loss with subgradients of size at most G.
    pieces = jnp.asarray(np.stack([costs, -0.5 * costs, np.roll(costs, 1)]))
    eta = np.sqrt(2 * np.log(n) / num_steps) / bound

    def loss(x):
        return jnp.max(pieces @ x)

    states = answers(mirror_descent(entropy_map(), eta), loss, jnp.ones(n) / n, num_steps)
    # The least value is that of a game of three rows, bounded from below by any mixture of them.
    mixtures = np.random.default_rng(1).dirichlet(np.ones(3), size=20_000)
    lower = np.max(np.min(mixtures @ np.asarray(pieces), axis=1))
    excess = float(loss(states.average[-1])) - lower
    assert excess <= bound * np.sqrt(2 * np.log(n) / num_steps)


def test_with_the_squared_length_it_is_projected_gradient_descent(x64):
    ball = optax.projections.projection_l2_ball
    x = np.array([0.9, -0.1])
    states = answers(
        mirror_descent(euclidean_map(ball), 0.1),
        lambda x: jnp.sum((x - 2) ** 2),
        jnp.asarray(x),
        5,
    )
    for _ in range(5):
        x = x - 0.2 * (x - 2)
        x = x / max(1.0, np.linalg.norm(x))
    np.testing.assert_allclose(states.dual[-1], x, rtol=1e-12)


def game_gap(game, point):
    x, y = (np.asarray(p) for p in point)
    return np.max(game.T @ x) - np.min(game @ y)


def test_mirror_prox_solves_matrix_games_at_the_rate_of_the_theorem(x64):
    game = np.random.default_rng(0).normal(size=(40, 60))
    largest, logs = np.abs(game).max(), np.log(40) + np.log(60)

    def operator(point):
        x, y = point
        return jnp.asarray(game) @ y, -jnp.asarray(game).T @ x

    start = (jnp.ones(40) / 40, jnp.ones(60) / 60)
    states = answers(mirror_prox(entropy_map(), 1 / (2 * largest)), operator, start, 1600)
    gaps = {
        steps: game_gap(game, [p[steps - 1] for p in states.average]) for steps in (100, 400, 1600)
    }
    for steps, gap in gaps.items():
        assert gap <= 2 * largest * logs / steps
    # Mirror descent on both players, with the step size of its own theorem.
    x, y = np.ones(40) / 40, np.ones(60) / 60
    eta = np.sqrt(2 * logs / 1600) / largest
    sums = [0 * x, 0 * y]
    for _ in range(1600):
        sums = [sums[0] + x, sums[1] + y]
        x, y = (
            normalised(x * np.exp(-eta * (game @ y))),
            normalised(y * np.exp(eta * (game.T @ x))),
        )
    assert gaps[1600] <= 0.3 * game_gap(game, [s / 1600 for s in sums])


def test_the_extragradient_converges_where_simultaneous_descent_circles(x64):
    """A bilinear game: one eigenvalue ±i, which plain descent expands by √(1 + η²)."""

    def operator(point):
        x, y = point
        return y, -x

    solver = mirror_prox(euclidean_map(), 0.5, average=False, tol=1e-8)
    ones = (jnp.ones(()), jnp.ones(()))
    (x, y), info = jax.jit(lambda start: solver.run(operator, start))(ones)
    assert abs(x) + abs(y) < 1e-7
    # A step multiplies by |1 − η² ∓ iη|² = 1 − η² + η⁴ = 13/16.
    expected = np.log(1e-8 / np.sqrt(2)) / np.log(np.sqrt(13 / 16))
    assert abs(int(info.num_steps) - expected) <= 2


def test_far_away_vertices_are_reached_and_stay_finite():
    """Weights underflow in float32; their logarithms do not."""
    solver = mirror_descent(entropy_map(), 100.0, average=False, tol=1e-6)
    costs = jnp.array([[0.0, 1.0], [5.0, 2.0]])
    start = jnp.full((2, 2), 0.5)

    def loss(x):
        return jnp.sum(costs * x)

    weights, info = jax.jit(lambda x: solver.run(loss, x))(start)
    np.testing.assert_allclose(weights, [[1.0, 0.0], [0.0, 1.0]], atol=1e-6)
    slope = jax.jit(jax.jacrev(lambda x: solver.residual(loss, x)))(weights)
    assert np.isfinite(np.asarray(slope)).all()
    assert info.num_steps < 10
