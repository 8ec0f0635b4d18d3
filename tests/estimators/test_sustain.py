import pytest

from metaopt.estimators import sustain
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, TERMS

SETTINGS = {
    "step_size": 0.4,
    "step_exponent": 0.25,
    "system_step_size": 0.7,
    "momentum": 0.3,
    "momentum_exponent": 0.5,
}


def direction(z, x, length):
    hessian, target = CURVED.hessian(z, x), CURVED.f_z(z, x)
    u = bilevel.random_neumann(hessian, target, 0.7, TERMS, length)
    return CURVED.f_x(z, x) - CURVED.cross(z, x) @ u


def test_steps_are_those_of_the_equations_with_one_length_at_both_points(x64):
    lengths = []

    def transcription(carried, x, k, estimate):
        lengths.append(int(estimate.info.oracles.hessian_products) // 2)
        if carried is None:
            z, past = bilevel.Z0, direction(bilevel.Z0, x, lengths[0])
        else:
            z, (last_z, last_x, last_direction) = carried
            past = direction(z, x, lengths[-1]) + (1 - 0.3 / (k + 1) ** 0.5) * (
                last_direction - direction(last_z, last_x, lengths[-1])
            )
        new = z - 0.4 / (k + 1) ** 0.25 * CURVED.g_z(z, x)
        return (new, (z, x, past)), past, {"params": new, "last_params": z}

    estimate = bilevel.check_steps("sustain", transcription, SETTINGS, num_steps=4)
    assert len(set(lengths)) > 1
    assert tuple(int(x) for x in estimate.info.oracles) == (2, 2, 2 * lengths[-1], 2)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="sustain: momentum must be between 0 and 1"):
        sustain(bilevel.PROBLEM, momentum=-0.1)
