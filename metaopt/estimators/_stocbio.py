"""StocBiO: an inner loop, then the hypergradient by a truncated Neumann series.

    z ← z − ρ ∇_z g(z, θ), T times;    u = η Σ_{q ≤ Q} Π_{i ≤ q} (I − η H_i) ∇_z f
    g = ∇_θ f − J u,    H u = ∇_z f,    all at the new z, every H_i and J on a batch of its own

The series falls short of H⁻¹ ∇_z f by (I − η H)^{Q+1} H⁻¹ ∇_z f. Ji et al. 2021 (ICML),
arXiv:2010.07962, Algorithm 2; z is always warm-started here.
"""

from metaopt.core import BilevelProblem, Estimator, Scalar, checked
from metaopt.estimators._bilevel import check_settings
from metaopt.estimators._hypergradient import double_loop, neumann


@checked
def stocbio(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 0.0,
    system_step_size: Scalar | None = None,
    num_steps: int = 10,
    num_terms: int = 10,
) -> Estimator:
    """Estimates the hypergradient after T inner steps by Q Hessian products.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner steps. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        system_step_size: η of the series, below 2/λ_max(H); None: `step_size`. Traced.
        num_steps: inner steps T. Static.
        num_terms: Hessian products Q; the series has Q + 1 terms. Static.

    Returns:
        An estimator that warm-starts z.

    Raises:
        ValueError: for steps that are not positive or counts below 1.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "stocbio",
        counts={"num_steps": num_steps, "num_terms": num_terms},
        positive={"step_size": step_size, "system_step_size": system_step_size},
    )
    rate = step_size if system_step_size is None else system_step_size
    return double_loop(
        "stocbio",
        problem,
        neumann(problem, step_size=rate, num_terms=num_terms),
        step_size=step_size,
        step_exponent=step_exponent,
        num_steps=num_steps,
    )
