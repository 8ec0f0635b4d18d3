import numpy as np
import pytest

from metaopt.estimators import vrbo
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, ROWS, STEPS, TERMS

SETTINGS = {"step_size": 0.4, "system_step_size": 0.7}


def direction(z, x):
    u = bilevel.neumann(CURVED.hessian(z, x), CURVED.f_z(z, x), 0.7, TERMS)
    return CURVED.f_x(z, x) - CURVED.cross(z, x) @ u


def test_steps_are_those_of_the_equations(x64):
    def transcription(z, x, k, estimate):
        # Without noise the recursion gives what it estimates, at the last point that it saw: the
        # last but one z of the inner loop or, after a reset, the last. The first loop stands still.
        last = z = bilevel.Z0 if z is None else z
        if k > 0:
            last = bilevel.descent(CURVED, z, x, 0.4, STEPS - 1)
            z = bilevel.descent(CURVED, last, x, 0.4, 1)
        if k % 4 == 0:
            last = z
        return z, direction(last, x), {"params": z, "last_params": last}

    bilevel.check_steps("vrbo", transcription, SETTINGS, num_steps=6)


def test_oracles_count_a_reset_in_batches(x64):
    for start, batches in ((0, ROWS // 2), (1, 0)):
        run = bilevel.run(
            "vrbo", CURVED.data(), settings=SETTINGS, outer_step=0.2, start=start, stop=start + 1,
            state=None if start == 0 else run.state,
        )  # fmt: skip
        calls = 2 * STEPS + batches
        assert tuple(int(x) for x in run.estimate.info.oracles) == (
            calls,
            calls,
            calls * TERMS,
            calls,
        )


def test_between_resets_both_points_of_a_correction_share_their_batch(x64):
    # Additive noise in ∇_z g cancels in D(w) − D(w_last), so the error of the inner direction stays
    # what the reset left: that of one noisy evaluation.
    settings, data, errors = SETTINGS | {"step_size": 0.3}, CURVED.data(noise=0.1), []
    rest = {"theta": None, "state": None}
    for k in range(5):
        run = bilevel.run(
            "vrbo", data, settings=settings, outer_step=0.1, start=k, stop=k + 1, **rest
        )
        rest = {"theta": run.theta, "state": run.state}
        point = bilevel.z_of(run.state.last_params), bilevel.x_of(run.state.last_theta)
        errors.append(bilevel.z_of(run.state.directions[0]) - CURVED.g_z(*point))
    np.testing.assert_allclose(errors[1:4], [errors[0]] * 3, rtol=1e-9)
    assert np.min(np.abs(errors[0])) > 1e-4
    assert np.max(np.abs(errors[4] - errors[0])) > 1e-3


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="vrbo: period must be an integer of at least 1"):
        vrbo(bilevel.PROBLEM, period=0)
