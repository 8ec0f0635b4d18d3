import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.estimators import implicit, one_step
from metaopt.implicit import neumann
from tests.estimators.test_implicit import ridge_problem, run


def test_one_step_is_the_gradient_through_the_last_step_at_a_solution(x64):
    problem, theta, step_size, _ = ridge_problem(dim=8)
    estimates, state = run(one_step(problem, step_size=step_size, num_steps=200), theta, 2)
    params = state.params[0]

    def after_one_step(theta):
        grads = jax.grad(problem.inner_loss)(params, theta, (), None)
        return problem.outer_loss(params - step_size * grads, theta, (), None)

    np.testing.assert_allclose(
        estimates.grad[-1], jax.grad(after_one_step)(theta), rtol=0, atol=1e-12
    )
    same, _ = run(
        implicit(
            problem,
            inner_opt=optax.sgd(step_size),
            num_steps=200,
            solver=neumann(num_terms=0, step_size=step_size),
        ),
        theta,
        2,
    )
    np.testing.assert_array_equal(same.grad, estimates.grad)
    assert int(estimates.info.oracles.hessian_products[-1]) == 0


def test_bad_settings_are_refused():
    problem = ridge_problem(dim=8)[0]
    with pytest.raises(ValueError, match="one_step: step_size must be positive"):
        one_step(problem, step_size=-1.0)
    with pytest.raises(ValueError, match="one_step: num_tasks"):
        one_step(problem, step_size=0.1, num_tasks=0)
    with pytest.raises(TypeError, match="one_step: theta"):
        one_step(problem, step_size=0.1).init(jnp.arange(2), (), jax.random.key(0))
