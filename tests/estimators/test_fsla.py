import numpy as np
import pytest

from metaopt.estimators import fsla
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED

SETTINGS = {
    "step_size": 0.4,
    "step_exponent": 0.25,
    "system_step_size": 0.7,
    "system_exponent": 0.5,
    "momentum": 0.3,
    "momentum_exponent": 0.5,
}


def outer_direction(z, x, u):
    return CURVED.f_x(z, x) - CURVED.cross(z, x) @ u


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        first = (bilevel.Z0, np.zeros(3), x, outer_direction(bilevel.Z0, x, np.zeros(3)))
        z, u, last_x, past = first if carried is None else carried
        new_z = z - 0.4 / (k + 1) ** 0.25 * CURVED.g_z(z, x)
        residual = CURVED.hessian(new_z, x) @ u - CURVED.f_z(new_z, x)
        new_u = u - 0.7 / (k + 1) ** 0.5 * residual
        weight = 1 if k == 0 else 0.3 / (k + 1) ** 0.5
        correction = past - outer_direction(z, last_x, u)
        direction = outer_direction(new_z, x, new_u) + (1 - weight) * correction
        np.testing.assert_allclose(estimate.loss, CURVED.f(new_z, x), rtol=1e-12)
        return (new_z, new_u, x, direction), direction, {"params": new_z, "u": new_u}

    estimate = bilevel.check_steps("fsla", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (1, 3, 1, 2)


def test_the_momentum_is_a_recursion_on_one_batch(x64):
    # ∇_θ f has additive noise n, the same at both points: momentum 1 forgets the past and shows it.
    data = CURVED.data(noise=0.1)
    forget = SETTINGS | {"momentum": 1.0, "momentum_exponent": 0.0}
    theta, state, _ = bilevel.run("fsla", data, settings=SETTINGS, outer_step=0.2, stop=2)
    rest = {"outer_step": 0.2, "theta": theta, "state": state, "start": 2, "stop": 3}
    new = bilevel.run("fsla", data, settings=forget, **rest)
    got = bilevel.run("fsla", data, settings=SETTINGS, **rest)

    x, z, u = (bilevel.z_of(v) for v in (new.state.params, new.state.params, new.state.u))
    x, last_x = bilevel.x_of(theta), bilevel.x_of(state.last_theta)
    noise = bilevel.x_of(new.estimate.grad) - outer_direction(z, x, u)
    old = outer_direction(bilevel.z_of(state.params), last_x, bilevel.z_of(state.u)) + noise
    past = bilevel.x_of(state.direction) - old
    expected = bilevel.x_of(new.estimate.grad) + (1 - 0.3 / 3**0.5) * past
    np.testing.assert_allclose(bilevel.x_of(got.estimate.grad), expected, rtol=1e-10)
    assert np.max(np.abs(noise)) > 1e-3


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="fsla: momentum must be between 0 and 1"):
        fsla(bilevel.PROBLEM, momentum=2.0)
