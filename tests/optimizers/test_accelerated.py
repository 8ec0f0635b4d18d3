import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

from metaopt.optimizers import agd, fista


def trajectory(solver, loss, start, num_steps):
    """All answers of a solver, the start first."""

    def step(state, _):
        state = solver.update(loss, state)
        return state, state.params

    found = jax.jit(lambda x: jax.lax.scan(step, solver.init(x), length=num_steps)[1])(start)
    return np.concatenate([np.asarray(start)[None], found])


def test_repeats_a_transcription(x64):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 4))
    hessian = a.T @ a
    smoothness = np.linalg.eigvalsh(hessian)[-1]
    y = x = rng.normal(size=4)
    expected, weight = [y], 1.0
    for _ in range(10):
        y_next = x - hessian @ x / smoothness
        weight_next = (1 + np.sqrt(1 + 4 * weight**2)) / 2
        gamma = (1 - weight) / weight_next
        x = (1 - gamma) * y_next + gamma * y
        y, weight = y_next, weight_next
        expected.append(y)
    found = trajectory(
        agd(smoothness), lambda x: 0.5 * jnp.sum((jnp.asarray(a) @ x) ** 2), expected[0], 10
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_stays_below_the_bound_and_far_below_gradient_descent(x64):
    eigenvalues = np.logspace(-4, 0, 200)
    start = np.random.default_rng(0).normal(size=200)
    found = trajectory(
        agd(1.0), lambda x: 0.5 * jnp.sum(jnp.asarray(eigenvalues) * x**2), start, 1600
    )
    losses = 0.5 * np.sum(eigenvalues * found**2, axis=1)
    for steps in (100, 400, 1600):
        assert losses[steps] <= 2 * np.sum(start**2) / (steps + 1) ** 2
    descent = 0.5 * np.sum(eigenvalues * ((1 - eigenvalues) ** 1600 * start) ** 2)
    assert losses[1600] <= 0.01 * descent


def test_known_strong_convexity_gives_the_rate_of_the_theorem(x64):
    low, high = 0.01, 1.0
    eigenvalues = np.linspace(low, high, 20)
    start = np.random.default_rng(0).normal(size=20)
    found = trajectory(
        agd(high, strong_convexity=low),
        lambda x: 0.5 * jnp.sum(jnp.asarray(eigenvalues) * x**2),
        start,
        100,
    )
    losses = 0.5 * np.sum(eigenvalues * found**2, axis=1)
    bound = (low + high) / 2 * np.sum(start**2) * np.exp(-np.arange(101) * np.sqrt(low / high))
    assert np.all(losses[1:] <= bound[1:])


def lasso(seed=1, rows=100, columns=300):
    """A sparse regression, its step and objective, and a traced loss of the smooth part."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(rows, columns))
    truth = np.zeros(columns)
    truth[:10] = rng.normal(size=10)
    targets = design @ truth + 0.1 * rng.normal(size=rows)
    smoothness = np.linalg.norm(design, 2) ** 2 / rows

    def loss(w):
        return jnp.sum((jnp.asarray(design) @ w - jnp.asarray(targets)) ** 2) / (2 * rows)

    def objective(w, alpha):
        return np.sum((design @ w - targets) ** 2) / (2 * rows) + alpha * np.sum(np.abs(w))

    return design, targets, smoothness, loss, objective


def soft_threshold(alpha):
    def prox(w, step):
        return jnp.sign(w) * jnp.maximum(jnp.abs(w) - alpha * step, 0)

    return prox


def test_finds_the_lasso_of_scikit_learn_faster_than_without_acceleration(x64):
    alpha = 0.1
    design, targets, smoothness, loss, objective = lasso()
    reference = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=100_000)
    best = reference.fit(design, targets).coef_
    prox = soft_threshold(alpha)
    found = trajectory(fista(prox, smoothness), loss, np.zeros(300), 200)
    assert np.max(np.abs(found[200] - best)) <= 1e-4

    def plain(w, _):
        return prox(w - jax.grad(loss)(w) / smoothness, 1 / smoothness), None

    slow = jax.jit(lambda w: jax.lax.scan(plain, w, length=200)[0])(jnp.zeros(300))
    gaps = [objective(np.asarray(w), alpha) - objective(best, alpha) for w in (found[200], slow)]
    assert gaps[1] >= 100 * gaps[0]
    for steps in (50, 100, 200):
        gap = objective(found[steps], alpha) - objective(best, alpha)
        assert gap <= 2 * smoothness * np.sum(best**2) / (steps + 1) ** 2


def test_without_a_proximal_term_it_is_accelerated_gradient_descent():
    def loss(x):
        return jnp.sum(jnp.array([1.0, 0.1]) * x**2)

    ways = [agd(2.0), fista(lambda x, step: x, 2.0)]
    found = [trajectory(solver, loss, jnp.ones(2), 8) for solver in ways]
    np.testing.assert_array_equal(*found)


def test_restarts_make_it_fast_where_the_problem_is_strongly_convex(x64):
    """Without them the momentum grows beyond what the conditioning asks for, and rings."""
    eigenvalues = jnp.array([1.0, 0.003])

    def loss(x):
        return 0.5 * jnp.sum(eigenvalues * x**2)

    ends = []
    for restart in (False, True):
        solver = fista(lambda x, step: x, 1.0, restart=restart)
        ends.append(float(loss(trajectory(solver, loss, jnp.ones(2), 500)[-1])))
    assert ends[1] <= 1e-3 * ends[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_trees_and_dtypes_are_kept(dtype):
    solver = fista(soft_threshold_tree, 2.0, max_steps=50)
    start = {"w": jnp.ones((2, 3), dtype), "b": jnp.ones((), dtype)}
    params, info = jax.jit(
        lambda start: solver.run(lambda p: jnp.sum(p["w"] ** 2) + (p["b"] - 1) ** 2, start)
    )(start)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, start)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert info.error.dtype == jnp.float32
    # (b − 1)² + |b|/10 is least at 0.95.
    np.testing.assert_allclose(np.asarray(params["b"], float), 0.95, atol=4e-3)
    np.testing.assert_allclose(np.asarray(params["w"], float), 0, atol=4e-3)


def soft_threshold_tree(params, step):
    return jax.tree.map(lambda w: soft_threshold(0.1)(w, step), params)
