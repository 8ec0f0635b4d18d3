import numpy as np
import pytest

from metaopt.estimators import pbgd
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, QUADRATIC, STEPS, A, B

SETTINGS = {
    "step_size": 0.4,
    "params_step_size": 0.5,
    "penalty": 3.0,
    "penalty_exponent": 0.25,
}


def test_three_steps_with_the_value_gap_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        z, y = (bilevel.Z0, bilevel.Z0) if carried is None else carried
        weight = 3.0 * (k + 1) ** 0.25
        y = bilevel.descent(CURVED, y, x, 0.4, STEPS)
        direction = CURVED.f_x(z, x) + weight * (CURVED.g_x(z, x) - CURVED.g_x(y, x))
        new = z - 0.5 / (1 + weight) * (CURVED.f_z(z, x) + weight * CURVED.g_z(z, x))
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        return (new, y), direction, {"params": new, "solution": y}

    estimate = bilevel.check_steps("pbgd", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (STEPS + 2, 1, 0, 0)


def test_three_steps_with_the_gradient_gap_are_those_of_the_equations(x64):
    def transcription(z, x, k, estimate):
        z = bilevel.Z0 if z is None else z
        weight, residual = 3.0 * (k + 1) ** 0.25, CURVED.g_z(z, x)
        direction = CURVED.f_x(z, x) + 2 * weight * CURVED.cross(z, x) @ residual
        along = CURVED.f_z(z, x) + 2 * weight * CURVED.hessian(z, x) @ residual
        z = z - 0.5 / (1 + weight) * along
        return z, direction, {"params": z, "solution": bilevel.Z0}

    estimate = bilevel.check_steps("pbgd_gradient", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (1, 1, 1, 1)


def penalised_minimiser(gap, weight):
    """(z, x) where the gradient of the penalised loss is zero, on the quadratic."""
    identity, zero = np.eye(3), np.zeros(3)
    if gap == "value":  # g(z, x) − min g has the curvature A in z − A⁻¹ B x.
        square = A
    else:  # |A (z − A⁻¹ B x)|²
        square = 2 * A @ A
    response = np.linalg.solve(A, B)
    block = np.hstack([identity, -response])
    curvature = np.block([[identity, bilevel.C], [bilevel.C.T, identity]])
    matrix = curvature + weight * block.T @ square @ block
    solution = np.linalg.solve(matrix, np.concatenate([bilevel.E, zero]))
    return solution[:3], solution[3:]


@pytest.mark.parametrize("gap", ["value", "gradient"])
def test_descent_ends_at_the_penalised_minimiser_whose_bias_halves(gap, x64):
    floors = []
    for weight in (20.0, 40.0):
        run = bilevel.run(
            "pbgd" if gap == "value" else "pbgd_gradient",
            QUADRATIC.data(),
            settings={"step_size": 0.8, "params_step_size": 0.5, "penalty": weight},
            outer_step=0.4 / (1 + weight),
            stop=6_000,
        )
        z, x = penalised_minimiser(gap, weight)
        np.testing.assert_allclose(bilevel.x_of(run.theta), x, rtol=1e-8)
        np.testing.assert_allclose(bilevel.z_of(run.state.params), z, rtol=1e-8)
        floors.append(np.linalg.norm(bilevel.hypergradient(x)))
    assert 1.8 < floors[0] / floors[1] < 2.2


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="pbgd: gap='function' is unknown"):
        pbgd(bilevel.PROBLEM, gap="function")
    with pytest.raises(ValueError, match="pbgd: params_step_size must be positive"):
        pbgd(bilevel.PROBLEM, params_step_size=-1.0)
