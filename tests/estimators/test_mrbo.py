import numpy as np
import pytest

from metaopt.estimators import mrbo
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, TERMS

SETTINGS = {
    "step_size": 0.4,
    "step_exponent": 0.25,
    "system_step_size": 0.7,
    "momentum": 0.3,
    "momentum_exponent": 0.5,
}


def directions(z, x):
    """∇_z g and ∇_θ f − J u, without noise."""
    u = bilevel.neumann(CURVED.hessian(z, x), CURVED.f_z(z, x), 0.7, TERMS)
    return CURVED.g_z(z, x), CURVED.f_x(z, x) - CURVED.cross(z, x) @ u


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(z, x, k, estimate):
        z = bilevel.Z0 if z is None else z
        # Without noise the recursion gives what it estimates.
        inner, direction = directions(z, x)
        new = z - 0.4 / (k + 1) ** 0.25 * inner
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        weight = 1 if k == 0 else 0.3 / (k + 1) ** 0.5
        np.testing.assert_allclose(estimate.info.aux["momentum"], weight, rtol=1e-12)
        return new, direction, {"params": new, "last_params": z}

    estimate = bilevel.check_steps("mrbo", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (2, 2, 2 * TERMS, 2)


@pytest.mark.parametrize("name", ["mrbo", "sustain"])
def test_the_momentum_is_a_recursion_on_one_batch(name, x64):
    # With momentum 1 the past is forgotten, which shows what a batch gives at any point: the noisy
    # directions at this and at the last point, whose recursion the momentum 0.3 must be.
    data = CURVED.data(noise=0.1, hessian_noise=0.1)
    forget = SETTINGS | {"momentum": 1.0, "momentum_exponent": 0.0}
    theta, state, _ = bilevel.run(name, data, settings=SETTINGS, outer_step=0.2, stop=2)

    def noisy(theta, state, settings):
        step = {"settings": settings, "outer_step": 0.2, "start": 2, "stop": 3}
        return bilevel.run(name, data, theta=theta, state=state, **step).state.directions

    new = noisy(theta, state, forget)
    old = noisy(state.last_theta, state._replace(params=state.last_params), forget)
    got = noisy(theta, state, SETTINGS)
    weight = 0.3 / 3**0.5
    for part, vector in enumerate((bilevel.z_of, bilevel.x_of)):
        past = vector(state.directions[part]) - vector(old[part])
        expected = vector(new[part]) + (1 - weight) * past
        np.testing.assert_allclose(vector(got[part]), expected, rtol=1e-10)
        assert np.max(np.abs(vector(got[part]) - vector(new[part]))) > 1e-3


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="mrbo: momentum must be between 0 and 1"):
        mrbo(bilevel.PROBLEM, momentum=1.5)
