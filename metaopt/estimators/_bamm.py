"""sl-BAMM: averaged method of multipliers for inner losses that are not strongly convex.

    φ_k = (1 − μ_k) g + μ_k f,    μ_k = μ_0 / (k + 1)^p
    z ← z − ρ ∇_z φ_k,    u ← u − ρ_u (∂²φ_k/∂z² u − ∇_z f),    g = ∇_θ f − ∂²φ_k/∂θ∂z u

SOBA on the average of both losses: the curvature of f selects among the minimisers of g, where its
Hessian is singular. u is the multiplier of the constraint ∇_z φ_k = 0 in a Lagrangian. Liu et al.
2023 (ICML), arXiv:2302.03407. The paper lets the outer step decay with μ_k³.

Differs from the paper: the steps of z and u are constant by default.
"""

import jax

from metaopt.core import BilevelProblem, Estimator, Oracles, Scalar, checked
from metaopt.estimators._bilevel import check_fraction, decayed
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._soba import soba


@checked
def bamm(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.2,
    step_exponent: Scalar = 0.0,
    system_step_size: Scalar | None = None,
    system_exponent: Scalar = 0.0,
    average: Scalar = 0.5,
    average_exponent: Scalar = 0.25,
    radius: Scalar | None = None,
) -> Estimator:
    """Moves the inner variable, the multiplier and theta at once, on an average of both losses.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner variable. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        system_step_size: ρ_u of the multiplier; None: `step_size`. Traced.
        system_exponent: of the decay of ρ_u. Traced.
        average: μ_0, the weight of the outer loss in φ_0; 0 gives SOBA. Traced.
        average_exponent: p, of the decay of that weight. Traced.
        radius: u is projected onto the ball of this radius; None: it is not. Traced.

    Returns:
        An estimator with the state of `soba`. Its oracles count the derivatives of both losses in
        φ.

    Raises:
        ValueError: for steps or a radius that are not positive, or an `average` outside [0, 1].
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_fraction("bamm", average=average)
    averaged = soba(
        _averaged(problem),
        step_size=step_size,
        step_exponent=step_exponent,
        system_step_size=system_step_size,
        system_exponent=system_exponent,
        radius=radius,
    )

    def init(theta, data, key):
        return averaged.init(theta, data, key)

    def estimate(theta, state, data, key):
        weight = decayed(average, state.count, average_exponent)
        estimate, state = averaged.estimate(theta, state, (data, weight), key)
        # A derivative of φ is one of g and one of f.
        oracles = jax.tree.map(lambda x, y: x + y, estimate.info.oracles, Oracles(0, 1, 1, 1))
        info = estimate.info._replace(oracles=oracles, aux={"average": weight})
        return estimate._replace(info=info), state

    return checked_estimator("bamm", init, estimate)


def _averaged(problem: BilevelProblem) -> BilevelProblem:
    """The problem whose inner loss is φ; its data are the pools and the weight μ."""

    def inner_loss(params, theta, data, key):
        pools, weight = data
        key_inner, key_outer = jax.random.split(key)
        inner = problem.inner_loss(params, theta, pools, key_inner)
        return (1 - weight) * inner + weight * problem.outer_loss(params, theta, pools, key_outer)

    def outer_loss(params, theta, data, key):
        return problem.outer_loss(params, theta, data[0], key)

    return BilevelProblem(problem.init, inner_loss, outer_loss)
