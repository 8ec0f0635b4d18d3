import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.core import BilevelProblem
from metaopt.estimators import bome
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, QUADRATIC, STEPS, A, B, C, E

SETTINGS = {"step_size": 0.4, "params_step_size": 0.2, "eta": 0.7}


def direction_of(numbers, z, x, y, eta, *, barrier="gradient"):
    """∇f + λ ∇q over (z, x), λ and q."""
    q = numbers.g(z, x) - numbers.g(y, x)
    slope = np.concatenate([numbers.g_z(z, x), numbers.g_x(z, x) - numbers.g_x(y, x)])
    outer = np.concatenate([numbers.f_z(z, x), numbers.f_x(z, x)])
    rate = eta * (slope @ slope if barrier == "gradient" else q)
    weight = max((rate - outer @ slope) / (slope @ slope), 0)
    return outer + weight * slope, weight, q


def test_three_steps_are_those_of_the_equations(x64):
    def transcription(z, x, k, estimate):
        z = bilevel.Z0 if z is None else z
        y = bilevel.descent(CURVED, z, x, 0.4, STEPS)
        along, weight, q = direction_of(CURVED, z, x, y, 0.7)
        np.testing.assert_allclose(estimate.info.aux["penalty"], weight, rtol=1e-9)
        np.testing.assert_allclose(estimate.info.aux["gap"], q, rtol=1e-9)
        np.testing.assert_allclose(estimate.loss, CURVED.f(z, x), rtol=1e-12)
        z = z - 0.2 * along[:3]
        return z, along[3:], {"params": z}

    estimate = bilevel.check_steps("bome", transcription, SETTINGS)
    assert tuple(int(x) for x in estimate.info.oracles) == (STEPS + 2, 1, 0, 0)


def test_the_barrier_can_be_the_gap_itself(x64):
    estimator = bome(bilevel.PROBLEM, num_steps=STEPS, barrier="value", **SETTINGS)
    theta, data = bilevel.theta_of(bilevel.X0), CURVED.data()
    state = estimator.init(theta, data, jax.random.key(0))
    estimate, _ = jax.jit(estimator.estimate)(theta, state, data, jax.random.key(1))
    y = bilevel.descent(CURVED, bilevel.Z0, bilevel.X0, 0.4, STEPS)
    along, weight, _ = direction_of(CURVED, bilevel.Z0, bilevel.X0, y, 0.7, barrier="value")
    assert weight > 0
    np.testing.assert_allclose(bilevel.x_of(estimate.grad), along[3:], rtol=1e-10)


def limit():
    """Where the direction vanishes as the steps do: y has gone (I − P)(z* − z) of the way to z*."""
    left = np.linalg.matrix_power(np.eye(3) - 0.8 * A, STEPS)
    response = np.linalg.solve(A, B)
    back = B.T @ (np.eye(3) - left) @ np.linalg.inv(A)
    matrix = C.T @ response + np.eye(3) + back @ (response + C)
    return np.linalg.solve(matrix, back @ E)


def test_the_gap_closes_with_the_square_of_the_step(x64):
    # Where the gap is closed its gradient vanishes and the multiplier is infinite: constant steps
    # end at a distance, from a point with the bias of an inner loop of T steps.
    errors, gaps = [], []
    for step, stop in ((0.01, 5_000), (0.001, 50_000)):
        run = bilevel.run(
            "bome",
            QUADRATIC.data(),
            settings={"step_size": 0.8, "params_step_size": step, "eta": 0.5},
            outer_step=step,
            stop=stop,
        )
        errors.append(np.linalg.norm(bilevel.x_of(run.theta) - limit()))
        gaps.append(float(run.estimate.info.aux["gap"]))
    assert 9 < errors[0] / errors[1] < 11
    assert 90 < gaps[0] / gaps[1] < 110


def test_a_closed_gap_leaves_the_gradient_of_the_outer_loss(x64):
    # The inner loss does not depend on params: ∇q = 0, where the multiplier would be 0/0.
    flat = BilevelProblem(
        init=lambda key: jnp.ones(2),
        inner_loss=lambda params, theta, data, key: jnp.sum(theta**2) + 0 * jnp.sum(params),
        outer_loss=lambda params, theta, data, key: jnp.sum((params - theta) ** 2),
    )
    estimator, theta = bome(flat, num_steps=1, params_step_size=0.1), jnp.zeros(2)
    state = estimator.init(theta, (), jax.random.key(0))
    estimate, state = estimator.estimate(theta, state, (), jax.random.key(1))
    np.testing.assert_allclose(estimate.grad, [-2, -2], rtol=1e-12)
    np.testing.assert_allclose(state.params, [0.8, 0.8], rtol=1e-12)
    assert estimate.info.aux["penalty"] == 0


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="bome: barrier='gap' is unknown"):
        bome(bilevel.PROBLEM, barrier="gap")
    with pytest.raises(ValueError, match="bome: eta must be positive"):
        bome(bilevel.PROBLEM, eta=0.0)
