import pytest

from metaopt.estimators import bsa
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, STEPS, TERMS

SETTINGS = {"step_size": 0.4, "step_exponent": 0.5, "system_step_size": 0.7}


def test_three_steps_are_those_of_the_equations(x64):
    lengths = []

    def transcription(z, x, k, estimate):
        z = bilevel.Z0 if z is None else z
        z = bilevel.descent(CURVED, z, x, 0.4 / (k + 1) ** 0.5, STEPS)
        lengths.append(int(estimate.info.oracles.hessian_products))
        hessian, target = CURVED.hessian(z, x), CURVED.f_z(z, x)
        u = bilevel.random_neumann(hessian, target, 0.7, TERMS, lengths[-1])
        return z, CURVED.f_x(z, x) - CURVED.cross(z, x) @ u, {"params": z}

    estimate = bilevel.check_steps("bsa", transcription, SETTINGS, num_steps=4)
    assert len(set(lengths)) > 1
    assert 0 <= min(lengths) <= max(lengths) < TERMS
    assert tuple(int(x) for x in estimate.info.oracles) == (STEPS, 1, lengths[-1], 1)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="bsa: num_terms must be an integer of at least 1"):
        bsa(bilevel.PROBLEM, num_terms=0)
