"""TTSA: one inner step and one outer step, on two time scales.

    z ← z − ρ_k ∇_z g(z, θ);    u = Q η Π_{i ≤ q} (I − η H_i) ∇_z f,    q ~ U{0, …, Q − 1}
    g = ∇_θ f − J u,    H u = ∇_z f,    at the new z; J on the batch of the inner step

Hong et al. 2023, arXiv:2007.05170, Algorithm 1: ρ_k decays as (k + 1)^{−2/5} and the outer step,
the caller's, should as (k + 1)^{−3/5}, so that z follows θ.
"""

from metaopt.core import BilevelProblem, Estimator, Scalar, checked
from metaopt.estimators._bilevel import check_settings
from metaopt.estimators._hypergradient import double_loop, random_neumann


@checked
def ttsa(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 2 / 5,
    system_step_size: Scalar | None = None,
    num_terms: int = 10,
) -> Estimator:
    """Estimates the hypergradient after one inner step by one random term of a series.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner step. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        system_step_size: η of the series, below 2/λ_max(H), constant; None: `step_size`. Traced.
        num_terms: terms Q of the series of which one is drawn. Static.

    Returns:
        An estimator that carries z.

    Raises:
        ValueError: for steps that are not positive or `num_terms < 1`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "ttsa",
        counts={"num_terms": num_terms},
        positive={"step_size": step_size, "system_step_size": system_step_size},
    )
    rate = step_size if system_step_size is None else system_step_size
    return double_loop(
        "ttsa",
        problem,
        random_neumann(problem, step_size=rate, num_terms=num_terms),
        step_size=step_size,
        step_exponent=step_exponent,
        num_steps=1,
        reuse_batch=True,
    )
