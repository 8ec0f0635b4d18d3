import numpy as np
import pytest

from metaopt.estimators import stocbio
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, STEPS, TERMS

SETTINGS = {"step_size": 0.4, "step_exponent": 0.5, "system_step_size": 0.7}


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(z, x, k, estimate):
        z = bilevel.Z0 if z is None else z
        z = bilevel.descent(CURVED, z, x, 0.4 / (k + 1) ** 0.5, STEPS)
        u = bilevel.neumann(CURVED.hessian(z, x), CURVED.f_z(z, x), 0.7, TERMS)
        direction = CURVED.f_x(z, x) - CURVED.cross(z, x) @ u
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        return z, direction, {"params": z}

    estimate = bilevel.check_steps("stocbio", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (STEPS, 1, TERMS, 1)
    assert estimate.info.inner_steps == STEPS


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="stocbio: num_terms must be an integer of at least 1"):
        stocbio(bilevel.PROBLEM, num_terms=0)
