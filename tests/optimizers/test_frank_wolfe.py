import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import (
    fista,
    frank_wolfe,
    l1_ball_lmo,
    nuclear_ball_lmo,
    simplex_lmo,
)


def regression(seed=0):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(60, 30))
    targets = design @ rng.dirichlet(np.ones(30)) + 0.5 * rng.normal(size=60)

    def loss(x):
        return 0.5 * jnp.sum((jnp.asarray(design) @ x - jnp.asarray(targets)) ** 2)

    return loss, design, targets


def path(solver, loss, start, num_steps):
    def step(state, _):
        state = solver.update(loss, state)
        return state, (state.params, loss(state.params), state.error)

    return jax.jit(lambda x: jax.lax.scan(step, solver.init(x), length=num_steps)[1])(start)


def test_repeats_a_transcription(x64):
    loss, design, targets = regression()
    x, expected = np.ones(30) / 30, []
    for t in range(1, 9):
        gradient = design.T @ (design @ x - targets)
        vertex = np.eye(30)[np.argmin(gradient)]
        expected.append((x, gradient @ (x - vertex)))
        x = x + 2 / (t + 1) * (vertex - x)
    points, _, gaps = path(frank_wolfe(simplex_lmo()), loss, jnp.ones(30) / 30, 8)
    np.testing.assert_allclose(points, [x for x, _ in expected], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gaps, [gap for _, gap in expected], rtol=1e-10)


def test_stays_below_the_bound_and_the_gap_above_the_suboptimality(x64):
    loss, design, _ = regression()
    smoothness = np.linalg.norm(design, 2) ** 2

    def projection(x, step):
        return optax.projections.projection_simplex(x)

    start = jnp.ones(30) / 30
    best = fista(projection, smoothness, tol=1e-10, max_steps=5000).run(loss, start)[0]
    _, losses, gaps = path(frank_wolfe(simplex_lmo()), loss, start, 1000)
    above = np.asarray(losses) - float(loss(best))
    assert np.all(above >= -1e-9)
    assert np.all(np.asarray(gaps) >= above)
    t = np.arange(2, 1001)
    assert np.all(above[1:] <= 2 * smoothness * 2 / (t + 1))


def test_a_run_ends_where_its_gap_meets_the_tolerance():
    loss, *_ = regression()
    params, info = jax.jit(
        lambda x: frank_wolfe(simplex_lmo(), tol=1.0, max_steps=2000).run(loss, x)
    )(jnp.ones(30) / 30)
    gradient = jax.grad(loss)(params)
    np.testing.assert_allclose(info.error, gradient @ params - jnp.min(gradient), rtol=1e-4)
    assert info.error <= 1.0
    assert info.num_steps < 2000


def test_vertices_minimise_over_their_sets(x64):
    rng = np.random.default_rng(0)
    gradient = {"w": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.asarray(rng.normal(size=2))}
    flat = np.concatenate([np.ravel(gradient["b"]), np.ravel(gradient["w"])])

    def score(tree):
        return float(optax.tree.vdot(tree, gradient))

    def total(tree):
        return float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree)))

    for vertex, expected in [
        (simplex_lmo(radius=2.0)(gradient), 2 * flat.min()),
        (l1_ball_lmo(radius=2.0)(gradient), -2 * np.abs(flat).max()),
    ]:
        np.testing.assert_allclose(score(vertex), expected, rtol=1e-12)
        assert total(vertex) == 2.0


def test_the_nuclear_ball_has_the_leading_pair_of_singular_vectors(x64):
    gradient = np.random.default_rng(0).normal(size=(5, 3))
    u, values, vt = np.linalg.svd(gradient)
    found = nuclear_ball_lmo(radius=2.0, num_steps=500)({"m": jnp.asarray(gradient)})["m"]
    np.testing.assert_allclose(found, -2 * np.outer(u[:, 0], vt[0]), atol=1e-6)
    np.testing.assert_allclose(np.sum(found * gradient), -2 * values[0], rtol=1e-10)
    zero = nuclear_ball_lmo()(jnp.zeros((2, 2)))
    assert np.all(np.asarray(zero) == 0)
    with pytest.raises(ValueError, match="leaves must be matrices"):
        nuclear_ball_lmo()(jnp.zeros(3))
