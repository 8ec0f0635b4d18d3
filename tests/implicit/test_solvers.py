"""Every linear solver against dense float64 solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.implicit import (
    Operator,
    Status,
    bicgstab,
    cg,
    dense,
    gmres,
    identity,
    jacobi,
    neumann,
    normal_cg,
    nystrom,
    nystrom_preconditioner,
    seeded,
)
from tests.helpers import ravel, relative_error
from tests.implicit.problems import apply_matrix, definite, like, rotated


def operator_of(matrix, structure):
    return Operator(lambda v: apply_matrix(matrix, v), structure)


def solve(solver, matrix, b, structure="psd", start=None):
    """Compiled, with the matrix traced."""

    def run(matrix, b, start):
        return solver.solve(operator_of(matrix, structure), b, start, jax.random.key(7))

    return jax.jit(run)(jnp.asarray(matrix), b, start)


EXACT = {
    "cg": (cg(), "psd"),
    "cg_jacobi": (cg(preconditioner=jacobi()), "psd"),
    "cg_probed": (cg(preconditioner=jacobi(num_probes=4)), "psd"),
    "cg_nystrom": (cg(preconditioner=nystrom_preconditioner(rank=3, damping=1.0)), "symmetric"),
    "normal_cg": (normal_cg(), "general"),
    "normal_cg_symmetric": (normal_cg(), "symmetric"),
    "gmres": (gmres(), "general"),
    "gmres_jacobi": (gmres(restart=8, preconditioner=jacobi()), "general"),
    "bicgstab": (bicgstab(), "general"),
    "dense_cholesky": (dense(), "psd"),
    "dense_lu": (dense(), "general"),
    "dense_svd": (dense(well_posed=False), "general"),
    "neumann": (neumann(num_terms=400, step_size=1 / 16), "psd"),
}


@pytest.mark.parametrize("name", EXACT)
def test_solvers_find_the_dense_solution_of_a_tree_in_float64(name, x64):
    solver, structure = EXACT[name]
    matrix = rotated() if structure == "general" else definite(condition=15.0)
    b = like()
    u, info = solve(solver, matrix, b, structure)
    truth = np.linalg.solve(matrix, ravel(b))
    assert relative_error(u, truth) < 1e-9
    assert relative_error(jax.tree.map(lambda x: 1.1 * x, u), truth) > 1e-2
    assert jax.tree.structure(u) == jax.tree.structure(b)
    assert info.status == Status.OK
    residual = np.linalg.norm(ravel(b) - matrix @ ravel(u)) / np.linalg.norm(ravel(b))
    assert abs(float(info.residual) - residual) < 1e-12
    assert info.num_products >= 1


@pytest.mark.parametrize("name", ["cg", "normal_cg", "gmres", "bicgstab", "dense_lu"])
def test_solvers_meet_the_automatic_tolerance_in_float32(name):
    solver, structure = EXACT[name]
    b = jax.tree.map(lambda x: x.astype(jnp.float32), like())
    u, info = solve(solver, definite().astype(np.float32), b, structure)
    assert info.status == Status.OK
    assert info.residual < 10 * 10 * np.finfo(np.float32).eps ** 0.75
    assert {x.dtype for x in jax.tree.leaves(u)} == {jnp.dtype(jnp.float32)}


def transcription(matrix, b, steps, preconditioner=None):
    """Conjugate gradients in NumPy."""
    scale = np.ones(len(b)) if preconditioner is None else preconditioner
    u, r = np.zeros_like(b), b.copy()
    p = z = r / scale
    for _ in range(steps):
        alpha = (r @ z) / (p @ matrix @ p)
        u = u + alpha * p
        after = r - alpha * matrix @ p
        z_after = after / scale
        p = z_after + (after @ z_after) / (r @ z) * p
        r, z = after, z_after
    return u


@pytest.mark.parametrize("preconditioned", [False, True])
def test_truncated_cg_takes_the_steps_of_the_equations(preconditioned, x64):
    matrix, b = definite() + np.diag(np.arange(8.0)), np.arange(1.0, 9.0)
    diagonal = np.diag(matrix) if preconditioned else None
    preconditioner = jacobi(jnp.asarray(diagonal)) if preconditioned else None
    u, info = solve(
        cg(rtol=0.0, max_steps=3, preconditioner=preconditioner), matrix, jnp.asarray(b)
    )
    np.testing.assert_allclose(u, transcription(matrix, b, 3, diagonal), rtol=1e-12)
    assert (info.num_steps, info.num_products) == (3, 3)
    assert info.status == Status.OK


def test_cg_may_be_given_many_more_steps_than_it_needs(x64):
    matrix, b = definite(), jnp.arange(1.0, 9.0)
    for start in (None, jnp.asarray(np.linalg.solve(matrix, b))):
        u, info = solve(cg(rtol=0.0, max_steps=400), matrix, b, start=start)
        assert info.status == Status.OK
        assert info.num_steps < 30
        assert relative_error(u, np.linalg.solve(matrix, b)) < 1e-12


def test_cg_flags_negative_curvature_and_keeps_the_last_iterate(x64):
    matrix = np.diag([2.0, 1.0, -1.0])
    u, info = solve(cg(), matrix, jnp.array([1.0, 1.0, 0.0]), "symmetric")
    np.testing.assert_allclose(u, [0.5, 1, 0], rtol=1e-12)
    assert info.status == Status.OK  # b has no part where the curvature is negative
    u, info = solve(cg(), matrix, jnp.array([1.0, 1.0, 3.0]), "symmetric")
    assert info.status == Status.INDEFINITE
    np.testing.assert_array_equal(u, np.zeros(3))
    u, info = solve(cg(damping=2.0), matrix, jnp.array([1.0, 1.0, 3.0]), "symmetric")
    assert info.status == Status.OK
    np.testing.assert_allclose(u, [1 / 4, 1 / 3, 3], rtol=1e-10)


def test_a_singular_system_is_flagged_and_the_normal_equations_give_least_norm(x64):
    # Undamped conjugate gradients without a check of the curvature give 2 here, and 1 is right.
    matrix, b = np.diag([1.0, 0.0]), jnp.array([1.0, 1.0])
    assert solve(cg(), matrix, b)[1].status == Status.INDEFINITE
    assert solve(dense(), matrix, b, "psd")[1].status == Status.INDEFINITE
    assert solve(dense(), matrix, b, "general")[1].status == Status.BREAKDOWN
    for solver in (normal_cg(), dense(well_posed=False)):
        u, info = solve(solver, matrix, b, "general")
        np.testing.assert_allclose(u, [1, 0], atol=1e-12)
        assert info.status == Status.OK
        np.testing.assert_allclose(info.residual, 0.5**0.5, rtol=1e-10)


@pytest.mark.parametrize("make", [gmres, bicgstab])
def test_general_solvers_flag_singular_systems(make, x64):
    matrix, b = np.diag([1.0, 2.0, 0.0]), jnp.array([1.0, 1.0, 1.0])
    assert solve(make(), matrix, b, "general")[1].status != Status.OK


def test_running_out_of_steps_is_reported(x64):
    b = jnp.arange(1.0, 9.0)
    for solver in (cg(max_steps=2), normal_cg(max_steps=2), bicgstab(max_steps=2)):
        u, info = solve(solver, definite(), b)
        assert info.status == Status.MAX_STEPS
        truth = np.linalg.norm(b - definite() @ u) / np.linalg.norm(b)
        np.testing.assert_allclose(info.residual, truth, rtol=1e-10)


def test_a_residual_that_rounding_keeps_from_falling_is_reported():
    matrix = definite(condition=1e7).astype(np.float32)
    _, info = solve(cg(rtol=1e-7, max_steps=400), matrix, jnp.arange(1.0, 9.0))
    assert info.residual > 1e-6
    assert info.status != Status.OK


def test_nan_and_zero_right_hand_sides(x64):
    b = jnp.array([1.0, jnp.nan, 0.0])
    for solver in (cg(), normal_cg(), neumann(num_terms=2, step_size=0.1), identity()):
        assert solve(solver, np.eye(3), b)[1].status == Status.NONFINITE
    for solver in (cg(), normal_cg(), gmres(), bicgstab(), dense()):
        u, info = solve(solver, np.eye(3), jnp.zeros(3))
        np.testing.assert_array_equal(u, np.zeros(3))
        assert info.status == Status.OK
        assert info.residual == 0


@pytest.mark.parametrize("make", [cg, normal_cg, gmres, bicgstab])
def test_a_good_start_saves_steps_and_does_not_change_the_answer(make, x64):
    matrix, b = definite(), jnp.arange(1.0, 9.0)
    truth = np.linalg.solve(matrix, b)
    settings = {"restart": 2} if make is gmres else {}
    solver = make(rtol=1e-6, **settings)
    cold, info_cold = solve(solver, matrix, b)
    noise = np.random.default_rng(0).normal(size=8)
    warm, info_warm = solve(solver, matrix, b, start=jnp.asarray(truth * (1 + 1e-5 * noise)))
    assert info_warm.num_steps < info_cold.num_steps
    assert relative_error(warm, truth) < 1e-4
    assert relative_error(cold, truth) < 1e-4


def test_a_preconditioner_saves_products(x64):
    rng = np.random.default_rng(0)
    scales = np.geomspace(1, 1e4, 30)
    badly_scaled = definite(30, condition=3.0) * np.sqrt(np.outer(scales, scales))
    for matrix, preconditioner in [
        (badly_scaled, jacobi()),
        (definite(30, condition=1e4), nystrom_preconditioner(rank=20, damping=50.0)),
    ]:
        b = jnp.asarray(rng.normal(size=30))
        plain, info_plain = solve(cg(rtol=1e-8), matrix, b)
        quick, info_quick = solve(cg(rtol=1e-8, preconditioner=preconditioner), matrix, b)
        assert info_quick.num_steps < 0.75 * info_plain.num_steps
        assert relative_error(quick, np.linalg.solve(matrix, b)) < 1e-5


def test_many_systems_are_solved_together(x64):
    matrices = jnp.stack([definite(seed=s, condition=c) for s, c in ((0, 2.0), (1, 50.0))])
    b = jnp.arange(1.0, 9.0)
    for solver in (cg(), gmres()):
        u, info = jax.jit(jax.vmap(lambda m, s=solver: s.solve(operator_of(m, "psd"), b)))(matrices)
        for one, matrix, status in zip(u, matrices, info.status, strict=True):
            assert relative_error(one, np.linalg.solve(matrix, b)) < 1e-9
            assert status == Status.OK


def test_a_neumann_series_is_short_by_the_known_error(x64):
    matrix, b = definite(condition=5.0), np.arange(1.0, 9.0)
    step_size, truth = 0.2, np.linalg.solve(definite(condition=5.0), b)
    for terms in (0, 1, 7):
        u, info = solve(neumann(num_terms=terms, step_size=step_size), matrix, jnp.asarray(b))
        left = np.linalg.matrix_power(np.eye(8) - step_size * matrix, terms + 1) @ truth
        np.testing.assert_allclose(u, truth - left, rtol=1e-10)
        assert info.num_products == terms
    assert solve(neumann(num_terms=9, step_size=1.0), matrix, jnp.asarray(b))[1].status == (
        Status.BREAKDOWN
    )
    one = solve(neumann(num_terms=0, step_size=0.3), matrix, jnp.asarray(b))[0]
    same, info = solve(identity(scale=0.3), matrix, jnp.asarray(b))
    np.testing.assert_array_equal(one, same)
    assert info.num_products == 0


def woodbury(matrix, columns, damping, b):
    """The published form."""
    c = matrix[:, columns]
    inner = matrix[np.ix_(columns, columns)] + c.T @ c / damping
    return b / damping - c @ np.linalg.lstsq(inner, c.T @ b)[0] / damping**2


def test_nystrom_is_woodbury_s_formula_on_the_drawn_columns(x64):
    matrix, b = definite(12), np.arange(1.0, 13.0)
    key = jax.random.key(7)
    columns = np.asarray(jax.random.choice(key, 12, (5,), replace=False))
    u, info = solve(nystrom(rank=5, damping=0.5), matrix, jnp.asarray(b))
    np.testing.assert_allclose(u, woodbury(matrix, columns, 0.5, b), rtol=1e-9)
    assert info.num_products == 5
    full, info = solve(nystrom(rank=12, damping=0.5), matrix, jnp.asarray(b))
    assert relative_error(full, np.linalg.solve(matrix + 0.5 * np.eye(12), b)) < 1e-10
    assert info.residual < 1e-10


@pytest.mark.parametrize("sketch", ["columns", "gaussian"])
def test_nystrom_is_exact_on_curvature_of_its_rank(sketch, x64):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(400, 12)))[0]
    matrix = basis @ np.diag(np.geomspace(1, 100, 12)) @ basis.T
    b = jnp.asarray(rng.normal(size=400))
    truth = np.linalg.solve(matrix + 0.01 * np.eye(400), b)
    u, info = solve(nystrom(rank=12, damping=0.01, sketch=sketch), matrix, b)
    assert relative_error(u, truth) <= 1e-6
    assert info.status == Status.OK
    more, _ = solve(nystrom(rank=20, damping=0.01, sketch=sketch), matrix, b)
    assert relative_error(more, truth) <= 1e-6
    series, _ = solve(neumann(num_terms=40, step_size=0.01), matrix + 0.01 * np.eye(400), b)
    assert relative_error(series, truth) > 0.9
    # In float32 as well: nothing cancels.
    matrix, b = matrix.astype(np.float32), b.astype(jnp.float32)
    narrow, _ = solve(nystrom(rank=12, damping=0.01, sketch=sketch), matrix, b)
    assert relative_error(narrow, truth) <= 1e-3


def test_nystrom_flags_an_indefinite_operator(x64):
    matrix = np.diag([3.0, 2.0, -1.0, 1.0])
    _, info = solve(nystrom(rank=4, damping=0.1), matrix, jnp.ones(4), "symmetric")
    assert info.status == Status.INDEFINITE


def test_a_seeded_solver_draws_from_its_key_alone(x64):
    matrix, b = definite(12), jnp.arange(1.0, 13.0)
    operator = operator_of(matrix, "psd")
    fixed = seeded(nystrom(rank=3, damping=0.1), jax.random.key(7))
    expected, _ = solve(nystrom(rank=3, damping=0.1), matrix, b)
    np.testing.assert_allclose(fixed.solve(operator, b)[0], expected, rtol=1e-9)
    np.testing.assert_allclose(fixed.solve(operator, b)[0], expected, rtol=1e-9)
    other = seeded(nystrom(rank=3, damping=0.1), jax.random.key(8)).solve(operator, b)[0]
    assert relative_error(other, expected) > 1e-3


def test_bfloat16_keeps_its_dtype_and_scalars_are_wider():
    b = jnp.arange(1.0, 9.0, dtype=jnp.bfloat16)
    matrix = definite(condition=3.0)
    u, info = solve(cg(rtol=0.02), matrix, b)
    assert u.dtype == jnp.bfloat16
    assert info.residual.dtype == jnp.float32
    assert relative_error(u, np.linalg.solve(matrix, np.asarray(b, np.float64))) < 0.05


def test_bad_settings_are_refused():
    b = jnp.ones(3)
    operator = Operator(lambda v: v, "psd")
    for function, message in [
        (lambda: cg(rtol="best"), "cg: rtol='best' is unknown"),
        (lambda: cg(max_steps=0), "cg: max_steps must be at least 1"),
        (lambda: gmres(rtol=-1.0), "gmres: rtol must not be negative"),
        (lambda: gmres(restart=0), "gmres: restart must be at least 1"),
        (lambda: neumann(num_terms=-1, step_size=0.1), "neumann: num_terms"),
        (lambda: nystrom(rank=0, damping=0.1), "nystrom: rank must be at least 1"),
        (lambda: nystrom(rank=1, damping=0.1, sketch="rows"), "sketch='rows' is unknown"),
        (lambda: nystrom(rank=1, damping=0.1).solve(operator, b), "need a key"),
        (
            lambda: nystrom(rank=4, damping=0.1).solve(operator, b, None, jax.random.key(0)),
            "rank=4 exceeds the 3 unknowns",
        ),
        (lambda: jacobi(b, num_probes=3), "the diagonal is given"),
        (lambda: jacobi(num_probes=0), "num_probes must be at least 1"),
        (lambda: cg(preconditioner=jacobi(num_probes=2)).solve(operator, b), "need a key"),
    ]:
        with pytest.raises(ValueError, match=message):
            function()
