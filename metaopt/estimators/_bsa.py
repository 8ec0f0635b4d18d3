"""BSA: an inner loop, then the hypergradient by one random term of the Neumann series.

    z ← z − ρ ∇_z g(z, θ), T times;    u = Q η Π_{i ≤ q} (I − η H_i) ∇_z f,    q ~ U{0, …, Q − 1}
    g = ∇_θ f − J u,    H u = ∇_z f,    every H_i and J on a batch of its own

Ghadimi and Wang 2018, arXiv:1802.02246, Algorithm 3, with steps that decay as 1/√(k + 1), as the
outer step should. The inner loop follows the outer step there; here it opens the next estimate,
which is the same sequence after the first outer step.
"""

from metaopt.core import BilevelProblem, Estimator, Scalar, checked
from metaopt.estimators._bilevel import check_settings
from metaopt.estimators._hypergradient import double_loop, random_neumann


@checked
def bsa(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 0.5,
    system_step_size: Scalar | None = None,
    num_steps: int = 10,
    num_terms: int = 10,
) -> Estimator:
    """Estimates the hypergradient after T inner steps by at most Q − 1 Hessian products.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner steps. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        system_step_size: η of the series, below 2/λ_max(H), constant; None: `step_size`. Traced.
        num_steps: inner steps T. Static.
        num_terms: terms Q of the series of which one is drawn. Static.

    Returns:
        An estimator that warm-starts z. Unbiased for the sum of Q terms.

    Raises:
        ValueError: for steps that are not positive or counts below 1.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "bsa",
        counts={"num_steps": num_steps, "num_terms": num_terms},
        positive={"step_size": step_size, "system_step_size": system_step_size},
    )
    rate = step_size if system_step_size is None else system_step_size
    return double_loop(
        "bsa",
        problem,
        random_neumann(problem, step_size=rate, num_terms=num_terms),
        step_size=step_size,
        step_exponent=step_exponent,
        num_steps=num_steps,
    )
