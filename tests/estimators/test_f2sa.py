import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import f2sa
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, QUADRATIC, STEPS, A, B, C, E

SETTINGS = {"step_size": 0.4, "step_exponent": 0.5, "penalty": 3.0, "penalty_exponent": 0.25}
FIXED = {"step_size": 0.8, "step_exponent": 0.0, "penalty_exponent": 0.0}


def penalised_gradient(x, weight):
    """∇_x of min_z [f + λ g] − λ min_y g on the quadratic, and both minimisers."""
    held = np.linalg.solve(np.eye(3) + weight * A, E - C @ x + weight * B @ x)
    free = bilevel.solution(x)
    gap = QUADRATIC.g_x(held, x) - QUADRATIC.g_x(free, x)
    return QUADRATIC.f_x(held, x) + weight * gap, held, free


@pytest.mark.compiles
def test_three_steps_are_those_of_the_equations(x64):
    def transcription(carried, x, k, estimate):
        y, z = (bilevel.Z0, bilevel.Z0) if carried is None else carried
        gamma, weight = 0.4 / (k + 1) ** 0.5, 3.0 * (k + 1) ** 0.25
        alpha = gamma / (1 + weight)
        for _ in range(STEPS):
            y = y - gamma * CURVED.g_z(y, x)
            z = z - alpha * (CURVED.f_z(z, x) + weight * CURVED.g_z(z, x))
        direction = CURVED.f_x(z, x) + weight * (CURVED.g_x(z, x) - CURVED.g_x(y, x))
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        np.testing.assert_allclose(estimate.info.aux["penalty"], weight, rtol=1e-12)
        return (y, z), direction, {"params": y, "penalised": z}

    estimate = bilevel.check_steps("f2sa", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (2 * STEPS + 2, STEPS + 1, 0, 0)
    assert estimate.info.inner_steps == STEPS


def test_the_bias_falls_tenfold_with_a_tenfold_penalty(x64):
    exact = bilevel.hypergradient(bilevel.X0)
    errors = []
    for weight in (1e2, 1e3, 1e4):
        # Without an outer step both inner problems are solved at the first theta.
        run = bilevel.run(
            "f2sa", QUADRATIC.data(), settings=FIXED | {"penalty": weight}, outer_step=0.0, stop=60
        )
        gradient, held, free = penalised_gradient(bilevel.X0, weight)
        np.testing.assert_allclose(bilevel.z_of(run.state.params), free, rtol=1e-10)
        np.testing.assert_allclose(bilevel.z_of(run.state.penalised), held, rtol=1e-10)
        np.testing.assert_allclose(bilevel.x_of(run.estimate.grad), gradient, rtol=1e-8)
        errors.append(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all((ratios > 7) & (ratios < 13)), errors


def test_outer_descent_stops_at_a_floor_that_halves_with_twice_the_penalty(x64):
    floors = []
    for weight in (20.0, 40.0):
        run = bilevel.run(
            "f2sa", QUADRATIC.data(), settings=FIXED | {"penalty": weight}, outer_step=0.2, stop=500
        )
        assert np.linalg.norm(bilevel.x_of(run.estimate.grad)) < 1e-10
        floors.append(np.linalg.norm(bilevel.hypergradient(bilevel.x_of(run.theta))))
    assert 1.8 < floors[0] / floors[1] < 2.2


def test_the_penalised_step_times_the_penalty_stays_bounded(x64):
    theta, data = bilevel.theta_of(bilevel.X0), QUADRATIC.data()
    state = f2sa(bilevel.PROBLEM).init(theta, data, jax.random.key(0))
    for penalty in (0.1, 1.0, 1e3):
        settings = {"step_size": 0.3, "penalty": penalty}
        settings |= {"step_exponent": 4 / 7, "penalty_exponent": 1 / 7}
        for count in (0, 10, 1_000, 100_000):
            begin = state._replace(count=jnp.array(count, jnp.int32))
            run = bilevel.run("f2sa", data, settings=settings, outer_step=0, state=begin, stop=1)
            aux = run.estimate.info.aux
            assert aux["penalty"] * aux["penalised_step"] <= 0.3 / (count + 1) ** (4 / 7)
        np.testing.assert_allclose(aux["penalty"] / penalty, 100_001 ** (1 / 7), rtol=1e-10)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="f2sa: penalty must be positive"):
        f2sa(bilevel.PROBLEM, penalty=0.0)
    with pytest.raises(ValueError, match="f2sa: num_steps must be an integer of at least 1"):
        f2sa(bilevel.PROBLEM, num_steps=0)
