import numpy as np
import pytest

from metaopt.estimators import amigo
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, STEPS

SETTINGS = {"step_size": 0.4, "step_exponent": 0.5, "system_step_size": 0.7}


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        z, u = (bilevel.Z0, np.zeros(3)) if carried is None else carried
        z = bilevel.descent(CURVED, z, x, 0.4 / (k + 1) ** 0.5, STEPS)
        for _ in range(2):
            residual = CURVED.hessian(z, x) @ u - CURVED.f_z(z, x)
            u = u - 0.7 / (k + 1) ** 0.5 * residual
        direction = CURVED.f_x(z, x) - CURVED.cross(z, x) @ u
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        return (z, u), direction, {"params": z, "u": u}

    estimate = bilevel.check_steps("amigo", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (STEPS, 1, 2, 1)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="amigo: num_system_steps must be an integer"):
        amigo(bilevel.PROBLEM, num_system_steps=0)
