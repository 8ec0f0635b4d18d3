import numpy as np
import pytest

from metaopt.estimators import srba
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, ROWS

SETTINGS = {"step_size": 0.4, "system_step_size": 0.7}


def test_steps_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        # Without noise the recursion gives what it estimates: the directions of SOBA.
        z, u = (bilevel.Z0, np.zeros(3)) if carried is None else carried
        direction = CURVED.f_x(z, x) - CURVED.cross(z, x) @ u
        new_u = u - 0.7 * (CURVED.hessian(z, x) @ u - CURVED.f_z(z, x))
        z = z - 0.4 * CURVED.g_z(z, x)
        calls = ROWS // 2 if k % 4 == 0 else 2
        assert tuple(int(n) for n in estimate.info.oracles) == (calls,) * 4
        return (z, new_u), direction, {"params": z, "u": new_u}

    bilevel.check_steps("srba", transcription, SETTINGS, num_steps=6)


def test_between_resets_both_points_of_a_correction_share_their_batch(x64):
    # Additive noise cancels in D(w_k) − D(w_{k−1}): the error stays what the reset left.
    settings, data, errors = SETTINGS | {"step_size": 0.3}, CURVED.data(noise=0.1), []
    rest = {"theta": None, "state": None}
    for k in range(5):
        run = bilevel.run(
            "srba", data, settings=settings, outer_step=0.1, start=k, stop=k + 1, **rest
        )
        rest = {"theta": run.theta, "state": run.state}
        z, x, u = (f(v) for f, v in zip(VECTORS, run.state.last, strict=True))
        exact = CURVED.f_x(z, x) - CURVED.cross(z, x) @ u
        inner = bilevel.z_of(run.state.directions[0]) - CURVED.g_z(z, x)
        errors.append(np.concatenate([inner, bilevel.x_of(run.estimate.grad) - exact]))
    np.testing.assert_allclose(errors[1:4], [errors[0]] * 3, rtol=1e-9)
    assert np.min(np.abs(errors[0])) > 1e-4
    assert np.max(np.abs(errors[4] - errors[0])) > 1e-3


VECTORS = (bilevel.z_of, bilevel.x_of, bilevel.z_of)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="srba: period must be an integer of at least 1"):
        srba(bilevel.PROBLEM, period=0)
