import jax
import numpy as np
import pytest

from metaopt.estimators import darts
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED
from tests.helpers import relative_error

SETTINGS = {"step_size": 0.4, "virtual_step_size": 0.3}


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(z, x, k, estimate):
        z = bilevel.Z0 if z is None else z
        z = bilevel.descent(CURVED, z, x, 0.4, 2)
        ahead = z - 0.3 * CURVED.g_z(z, x)
        target = CURVED.f_z(ahead, x)
        eps = 0.05 / np.linalg.norm(target)
        above, below = (CURVED.g_x(z + sign * eps * target, x) for sign in (1, -1))
        direction = CURVED.f_x(ahead, x) - 0.3 * (above - below) / (2 * eps)
        np.testing.assert_allclose(estimate.loss, CURVED.f(ahead, x), rtol=1e-12)
        return z, direction, {"params": z}

    estimate = bilevel.check_steps("darts", transcription, SETTINGS | {"eps": 0.05})
    assert tuple(int(x) for x in estimate.info.oracles) == (5, 1, 0, 0)


def through_one_step(run, x, step):
    """∇_x f(z − step ∇_z g(z, x), x), by automatic differentiation."""
    data, key = CURVED.data(), jax.random.key(0)

    def value(theta):
        params = run.state.params
        gradient = jax.grad(bilevel.PROBLEM.inner_loss)(params, theta, data, key)
        ahead = jax.tree.map(lambda p, g: p - step * g, params, gradient)
        return bilevel.PROBLEM.outer_loss(ahead, theta, data, jax.random.key(1))

    return bilevel.x_of(jax.jit(jax.grad(value))(bilevel.theta_of(x)))


def test_the_direction_is_the_gradient_through_one_step(x64):
    # g has a third derivative of type (x, z, z), but g_x is a quadratic in z: exact differences.
    run = bilevel.run(
        "darts", CURVED.data(), settings=SETTINGS | {"eps": 0.01}, outer_step=0.0, stop=1
    )
    exact = through_one_step(run, bilevel.X0, 0.3)
    assert relative_error(bilevel.x_of(run.estimate.grad), exact) < 1e-9


def test_a_virtual_step_of_zero_leaves_the_direct_gradient(x64):
    run = bilevel.run(
        "darts",
        CURVED.data(),
        settings={"step_size": 0.4, "virtual_step_size": 0.0, "eps": 0.01},
        outer_step=0.0,
        stop=1,
    )
    z = bilevel.z_of(run.state.params)
    np.testing.assert_allclose(
        bilevel.x_of(run.estimate.grad), CURVED.f_x(z, bilevel.X0), rtol=1e-12
    )


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="darts: eps must be positive"):
        darts(bilevel.PROBLEM, eps=0.0)
