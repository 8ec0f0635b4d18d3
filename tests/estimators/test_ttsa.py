import jax
import numpy as np
import pytest

from metaopt.core import BilevelProblem
from metaopt.estimators import ttsa
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, TERMS

SETTINGS = {"step_size": 0.4, "step_exponent": 0.5, "system_step_size": 0.7}


def test_three_steps_are_those_of_the_equations(x64):
    lengths = []

    def transcription(z, x, k, estimate):
        z = bilevel.Z0 if z is None else z
        z = bilevel.descent(CURVED, z, x, 0.4 / (k + 1) ** 0.5, 1)
        lengths.append(int(estimate.info.oracles.hessian_products))
        hessian, target = CURVED.hessian(z, x), CURVED.f_z(z, x)
        u = bilevel.random_neumann(hessian, target, 0.7, TERMS, lengths[-1])
        return z, CURVED.f_x(z, x) - CURVED.cross(z, x) @ u, {"params": z}

    estimate = bilevel.check_steps("ttsa", transcription, SETTINGS, num_steps=4)
    assert tuple(int(x) for x in estimate.info.oracles) == (1, 1, lengths[-1], 1)


def test_the_mixed_product_is_on_the_batch_of_the_inner_step(x64):
    # g = (n θ) z with noise n: the step in z is −ρ n θ and J = n, so their ratio tells whether both
    # saw the same n. With one term of the series u = ∇f = 1.
    noisy = BilevelProblem(
        init=lambda key: np.float64(0.0),
        inner_loss=lambda z, theta, data, key: z * theta * jax.random.normal(key, ()),
        outer_loss=lambda z, theta, data, key: z + 0 * theta,
    )
    estimator, theta = ttsa(noisy, step_size=1.0, num_terms=1), np.float64(2.0)
    state = estimator.init(theta, (), jax.random.key(0))
    estimate, state = estimator.estimate(theta, state, (), jax.random.key(1))
    assert state.params != 0
    np.testing.assert_allclose(estimate.grad, state.params / theta, rtol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="ttsa: num_terms must be an integer of at least 1"):
        ttsa(bilevel.PROBLEM, num_terms=0)
