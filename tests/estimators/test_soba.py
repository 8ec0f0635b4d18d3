import numpy as np
import pytest

from metaopt.estimators import soba
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, QUADRATIC

SETTINGS = {"step_size": 0.4, "system_step_size": 0.7, "step_exponent": 0.5, "system_exponent": 0.3}


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        z, u = (bilevel.Z0, np.zeros(3)) if carried is None else carried
        rho, rho_u = 0.4 / (k + 1) ** 0.5, 0.7 / (k + 1) ** 0.3
        # All three from the old point.
        direction = CURVED.f_x(z, x) - CURVED.cross(z, x) @ u
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        new_u = u - rho_u * (CURVED.hessian(z, x) @ u - CURVED.f_z(z, x))
        z = z - rho * CURVED.g_z(z, x)
        return (z, new_u), direction, {"params": z, "u": new_u}

    estimate = bilevel.check_steps("soba", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (1, 1, 1, 1)


def test_the_multiplier_stays_within_the_radius(x64):
    run = bilevel.run(
        "soba",
        QUADRATIC.data(),
        settings=SETTINGS | {"radius": 0.05},
        outer_step=0.0,
        stop=30,
    )
    np.testing.assert_allclose(np.linalg.norm(bilevel.z_of(run.state.u)), 0.05, rtol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="soba: step_size must be positive"):
        soba(bilevel.PROBLEM, step_size=0.0)
    with pytest.raises(ValueError, match="soba: radius must be positive"):
        soba(bilevel.PROBLEM, radius=-1.0)
