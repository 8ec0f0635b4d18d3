import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.core import BilevelProblem
from metaopt.estimators import implicit
from metaopt.implicit import cg, dense, neumann, nystrom
from tests.helpers import relative_error, standard_errors
from tests.implicit.problems import ridge


def ridge_problem(**settings):
    """Ridge regression as a bilevel problem without noise."""
    inner, outer, theta, _, hessian, exact = ridge(**settings)
    theta = jnp.asarray(theta)
    problem = BilevelProblem(
        init=lambda key: jnp.zeros(len(theta)),
        inner_loss=lambda params, theta, data, key: inner(params, theta),
        outer_loss=lambda params, theta, data, key: outer(params, theta),
    )
    return problem, theta, float(1 / np.linalg.eigvalsh(hessian)[-1]), exact


def run(estimator, theta, num_estimates, data=()):
    """All estimates at one theta, the last state."""

    def one(state, key):
        estimate, state = estimator.estimate(theta, state, data, key)
        return state, estimate

    state = estimator.init(theta, data, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), num_estimates)
    state, estimates = jax.jit(lambda state, keys: jax.lax.scan(one, state, keys))(state, keys)
    return estimates, state


def test_warm_starts_converge_to_the_exact_gradient(x64):
    problem, theta, step_size, exact = ridge_problem(dim=8)
    settings = {"inner_opt": optax.sgd(step_size), "num_steps": 3}
    estimates, state = run(implicit(problem, **settings), theta, 60)
    errors = [relative_error(grad, exact) for grad in estimates.grad]
    assert errors[-1] < 1e-9
    assert errors[0] > 1e-3
    aux = estimates.info.aux
    assert aux.stationarity[-1] < 1e-9
    assert aux.solver_steps[-1] <= 1 < aux.solver_steps[0]  # u is warm as well
    assert state.params.shape == state.u.shape == (1, 8)
    cold, _ = run(implicit(problem, **settings, warm_start=False), theta, 2)
    np.testing.assert_allclose(cold.grad[0], cold.grad[1], rtol=1e-12)
    assert relative_error(cold.grad[1], exact) > 1e-3


def test_a_black_box_trains_as_well(x64):
    problem, theta, _, exact = ridge_problem(dim=8)

    def newton(loss, params):
        return params - jnp.linalg.solve(jax.hessian(loss)(params), jax.grad(loss)(params))

    estimates, _ = run(implicit(problem, inner_solver=newton, solver=dense()), theta, 1)
    assert relative_error(estimates.grad[0], exact) < 1e-9
    assert estimates.info.oracles.hessian_products[0] == 8


def test_oracles_are_counted(x64):
    problem, theta, step_size, _ = ridge_problem(dim=8)
    estimator = implicit(
        problem,
        inner_opt=optax.sgd(step_size),
        num_steps=5,
        solver=neumann(num_terms=3, step_size=step_size),
        num_tasks=2,
    )
    info = run(estimator, theta, 1)[0].info
    assert [int(x[0]) for x in info.oracles] == [2 * 6, 2, 2 * 3, 2]
    assert int(info.inner_steps[0]) == 10


def noisy_problem():
    """g = ½|params − θ − noise|², f = params·(c + noise): the gradient is c on average."""
    c = jnp.array([1.0, -2.0])

    def inner_loss(params, theta, data, key):
        noise = jax.random.normal(key, params.shape, params.dtype)
        return 0.5 * jnp.sum((params - theta - noise) ** 2)

    def outer_loss(params, theta, data, key):
        return params @ (c + jax.random.normal(key, params.shape, params.dtype))

    return BilevelProblem(lambda key: jnp.zeros(2), inner_loss, outer_loss), c


def test_it_is_unbiased_over_batches_of_the_outer_loss():
    problem, c = noisy_problem()
    estimator = implicit(problem, inner_opt=optax.sgd(0.5), num_steps=2, num_tasks=4)
    estimates, _ = run(estimator, jnp.array([0.3, -0.2]), 500)
    assert standard_errors(estimates.grad, c) < 4
    assert standard_errors(estimates.grad, 1.1 * c) > 4


@pytest.mark.compiles
def test_keys_differ_between_steps_or_identify_the_task():
    """The inner minimiser of one batch is θ + noise; full steps show which noises were seen."""
    problem, _ = noisy_problem()
    theta = jnp.zeros(2)
    stationarity = {}
    for draws in ("step", "task"):
        estimator = implicit(
            problem, inner_opt=optax.sgd(1.0), num_steps=3, draws=draws, warm_start=False
        )
        estimates, _ = run(estimator, theta, 4)
        stationarity[draws] = np.asarray(estimates.info.aux.stationarity)
        assert len(set(np.asarray(estimates.loss).tolist())) == 4
    np.testing.assert_allclose(stationarity["task"], 0, atol=1e-6)
    assert np.all(stationarity["step"] > 1e-2)


def few_shot(strength=2.0):
    """iMAML's inner problem: logistic regression with strength/2 · |params − theta|²."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(1.5 * rng.normal(size=(20, 6)))
    labels = jnp.asarray(rng.integers(0, 3, 20))

    def fit(params, rows):
        logits = x[rows] @ params
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]))

    def inner_loss(params, theta, data, key):
        proximal = 0.5 * strength * jnp.sum((params - theta) ** 2)
        return fit(params, slice(0, 10)) + proximal

    def outer_loss(params, theta, data, key):
        return fit(params, slice(10, 20))

    return BilevelProblem(lambda key: jnp.zeros((6, 3)), inner_loss, outer_loss)


@pytest.mark.compiles
def test_imaml_approaches_the_unrolled_gradient_with_every_cg_step(x64):
    problem = few_shot()
    theta = jnp.asarray(0.1 * np.random.default_rng(1).normal(size=(6, 3)))

    def estimate(num_steps, cg_steps):
        estimator = implicit(
            problem,
            inner_opt=optax.sgd(0.3),
            num_steps=num_steps,
            solver=cg(rtol=0.0, max_steps=cg_steps),
            warm_start=False,
            start=lambda theta, data, key: theta,
            draws="task",
        )
        return run(estimator, theta, 1)[0].grad[0]

    def unrolled(theta):
        def step(params, _):
            return params - 0.3 * jax.grad(problem.inner_loss)(params, theta, (), None), None

        params = jax.lax.scan(step, theta, None, length=300)[0]
        return problem.outer_loss(params, theta, (), None)

    expected = jax.jit(jax.grad(unrolled))(theta)
    errors = [relative_error(estimate(10, k), expected) for k in (1, 2, 5)]
    assert errors[2] <= 1e-3
    assert errors[0] > errors[1] > errors[2]


def indefinite_problem():
    """A saddle for theta < 0 and a bowl otherwise."""
    return BilevelProblem(
        init=lambda key: jnp.ones(2),
        inner_loss=lambda params, theta, data, key: 0.5 * theta * jnp.sum(params**2),
        outer_loss=lambda params, theta, data, key: jnp.sum(params),
    )


def test_flagged_solves_contribute_zero_and_are_counted():
    for theta, nonfinite in ((jnp.array(-1.0), 1.0), (jnp.array(1.0), 0.0)):
        estimator = implicit(
            indefinite_problem(), inner_opt=optax.sgd(0.1), num_steps=1, num_tasks=2
        )
        estimates, state = run(estimator, theta, 2)
        np.testing.assert_array_equal(estimates.info.nonfinite, [nonfinite] * 2)
        np.testing.assert_array_equal(estimates.info.aux.unsolved, [nonfinite] * 2)
        assert np.all((np.asarray(estimates.grad) == 0) == bool(nonfinite))
        assert np.isfinite(np.asarray(state.u)).all()


def test_inner_training_that_diverged_starts_again():
    problem = indefinite_problem()
    # Step 1 000 at curvature 1 leaves float32 within 13 steps; the next theta is harmless.
    estimator = implicit(problem, inner_opt=optax.sgd(1e3), num_steps=20)
    state = estimator.init(jnp.array(1.0), (), jax.random.key(0))
    estimate = jax.jit(estimator.estimate)
    first, state = estimate(jnp.array(1.0), state, (), jax.random.key(1))
    assert first.info.nonfinite == 1
    assert first.grad == 0
    second, state = estimate(jnp.array(1e-3), state, (), jax.random.key(2))
    assert second.info.nonfinite == 0
    assert np.isfinite(np.asarray(state.params)).all()


def test_random_solvers_get_a_fresh_key_per_estimate(x64):
    problem, theta, _, exact = ridge_problem(dim=8)

    def exact_inner(loss, params):
        return params - jnp.linalg.solve(jax.hessian(loss)(params), jax.grad(loss)(params))

    few, _ = run(
        implicit(problem, inner_solver=exact_inner, solver=nystrom(rank=3, damping=0.5)), theta, 3
    )
    assert len({float(g) for g in few.grad[:, 0]}) == 3
    full, _ = run(
        implicit(problem, inner_solver=exact_inner, solver=nystrom(rank=8, damping=1e-6)), theta, 1
    )
    assert relative_error(full.grad[0], exact) < 1e-4


@pytest.mark.compiles
def test_tasks_in_groups_are_the_same_tasks(x64):
    problem, _ = noisy_problem()
    settings = {"inner_opt": optax.sgd(0.3), "num_steps": 2, "draws": "task", "num_tasks": 4}
    whole, _ = run(implicit(problem, **settings), jnp.zeros(2), 1)
    groups, _ = run(implicit(problem, **settings, tasks_at_once=2), jnp.zeros(2), 1)
    np.testing.assert_allclose(whole.grad, groups.grad, rtol=1e-10)


def test_bad_settings_are_refused():
    problem, _ = noisy_problem()
    sgd = optax.sgd(0.1)
    for function, message in [
        (lambda: implicit(problem), "implicit: give inner_opt= and num_steps="),
        (lambda: implicit(problem, inner_opt=sgd), "implicit: give inner_opt= and num_steps="),
        (lambda: implicit(problem, inner_opt=sgd, num_steps=0), "num_steps must be an integer"),
        (
            lambda: implicit(problem, inner_solver=lambda loss, p: p, num_steps=3),
            "implicit: inner_solver= replaces",
        ),
        (
            lambda: implicit(problem, inner_opt=sgd, num_steps=1, draws="batch"),
            "draws='batch' is unknown",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            function()
    with pytest.raises(TypeError, match="implicit: theta"):
        implicit(problem, inner_opt=sgd, num_steps=1).init(jnp.arange(2), (), jax.random.key(0))
