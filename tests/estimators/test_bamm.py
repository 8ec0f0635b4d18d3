import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.core import BilevelProblem
from metaopt.estimators import bamm, soba
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, C

SETTINGS = {
    "step_size": 0.4,
    "step_exponent": 0.25,
    "system_step_size": 0.7,
    "system_exponent": 0.5,
    "average": 0.6,
    "average_exponent": 0.3,
}


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        z, u = (bilevel.Z0, np.zeros(3)) if carried is None else carried
        mu = 0.6 / (k + 1) ** 0.3
        hessian = (1 - mu) * CURVED.hessian(z, x) + mu * np.eye(3)
        cross = (1 - mu) * CURVED.cross(z, x) + mu * C.T
        direction = CURVED.f_x(z, x) - cross @ u
        new_u = u - 0.7 / (k + 1) ** 0.5 * (hessian @ u - CURVED.f_z(z, x))
        z = z - 0.4 / (k + 1) ** 0.25 * ((1 - mu) * CURVED.g_z(z, x) + mu * CURVED.f_z(z, x))
        np.testing.assert_allclose(estimate.info.aux["average"], mu, rtol=1e-12)
        return (z, new_u), direction, {"params": z, "u": new_u}

    estimate = bilevel.check_steps("bamm", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (1, 2, 2, 2)


def free_directions():
    """g leaves the second half of z free: f selects it. The solution is z = x = 1."""

    def inner_loss(params, theta, data, key):
        return 0.5 * jnp.sum(params["first"] ** 2) - theta @ params["first"]

    def outer_loss(params, theta, data, key):
        selected = jnp.sum((theta - params["second"]) ** 2)
        return 0.5 * selected + 0.5 * jnp.sum((params["first"] - 1) ** 2)

    def init(key):
        return {"first": jnp.zeros(5), "second": jnp.zeros(5)}

    return BilevelProblem(init, inner_loss, outer_loss)


def descend(estimator, num_steps):
    def one(carry, key):
        theta, state = carry
        estimate, state = estimator.estimate(theta, state, (), key)
        return (theta - 0.05 * estimate.grad, state), None

    theta = jnp.zeros(5)
    state = estimator.init(theta, (), jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), num_steps)
    return jax.jit(lambda carry: jax.lax.scan(one, carry, keys)[0])((theta, state))


def test_the_outer_loss_selects_among_the_minimisers_of_a_singular_inner_loss(x64):
    theta, state = descend(bamm(free_directions(), step_size=0.2), 1000)
    for values in (theta, state.params["first"], state.params["second"]):
        assert np.max(np.abs(values - 1)) < 1e-3
    # Implicit differentiation of g alone never moves what g leaves free.
    _, state = descend(soba(free_directions(), step_size=0.2, step_exponent=0.0), 1000)
    assert not np.any(state.params["second"])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="bamm: average must be between 0 and 1"):
        bamm(bilevel.PROBLEM, average=1.5)
