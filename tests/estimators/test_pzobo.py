import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import pzobo
from tests.estimators import bilevel
from tests.estimators.bilevel import QUADRATIC, STEPS, A, B
from tests.helpers import standard_errors


def through_the_loop(x, step):
    """∇_x f(z_N(x), x) for N gradient steps from a constant start, on the quadratic."""
    z = bilevel.descent(QUADRATIC, bilevel.Z0, x, step, STEPS)
    decay = np.eye(3) - step * A
    response = step * sum(np.linalg.matrix_power(decay, i) for i in range(STEPS)) @ B
    return QUADRATIC.f_x(z, x) + response.T @ QUADRATIC.f_z(z, x), z


def test_estimates_are_unbiased_for_the_gradient_through_the_loop(x64):
    # On quadratics the response is linear in θ, so that finite differences have no bias; noise that
    # all runs share cancels in them.
    estimator = pzobo(bilevel.PROBLEM, step_size=0.3, num_steps=STEPS, num_directions=2)
    theta, data = bilevel.theta_of(bilevel.X0), QUADRATIC.data()
    state = estimator.init(theta, data, jax.random.key(0))

    def one(key):
        estimate, new = estimator.estimate(theta, state, data, key)
        grad = estimate.grad
        return jnp.append(grad[0], grad[1]["s"]), new.params, estimate.info.oracles

    grads, params, oracles = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 20_000))
    expected, z = through_the_loop(bilevel.X0, 0.3)
    np.testing.assert_allclose(bilevel.z_of(params)[0], z, rtol=1e-10)
    assert standard_errors(grads, expected) < 4.5
    assert standard_errors(grads, 1.1 * expected) > 4.5
    assert tuple(int(x[0]) for x in oracles) == (3 * STEPS, 1, 0, 0)


def test_perturbed_runs_see_the_batches_of_the_unperturbed_one(x64):
    # With additive noise in ∇_z g the differences of runs are free of it, whatever μ: as without.
    grads = []
    for mu in (1e-3, 1.0):
        run = bilevel.run(
            "pzobo",
            QUADRATIC.data(noise=0.3),
            settings={"step_size": 0.3, "mu": mu},
            outer_step=0.1,
            stop=1,
        )
        grads.append(bilevel.x_of(run.estimate.grad))
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-8)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="pzobo: mu must be positive"):
        pzobo(bilevel.PROBLEM, mu=0.0)
