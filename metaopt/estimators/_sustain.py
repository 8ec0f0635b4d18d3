"""SUSTAIN: recursive momentum with one random term of the Neumann series.

    D(w) = (∇_z g, ∇_θ f − J u) at w = (z, θ)
    u = Q η Π_{i ≤ q} (I − η H_i) ∇_z f,    q ~ U{0, …, Q − 1}
    d_k = D(w_k) + (1 − a_k) (d_{k−1} − D(w_{k−1})),    both on the same batches and the same q
    z ← z − ρ_k d^z,    g = d^θ        simultaneous;    H u = ∇_z f

`mrbo` with another inverse. Khanduri et al. 2021 (NeurIPS), arXiv:2102.07367, Algorithm 1.
"""

from metaopt.core import BilevelProblem, Estimator, Scalar, checked
from metaopt.estimators._bilevel import check_fraction, check_settings
from metaopt.estimators._hypergradient import random_neumann
from metaopt.estimators._mrbo import momentum_estimator


@checked
def sustain(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 1 / 3,
    momentum: Scalar = 0.5,
    momentum_exponent: Scalar = 2 / 3,
    system_step_size: Scalar | None = None,
    num_terms: int = 10,
) -> Estimator:
    """Moves the inner variable and theta at once, along directions with recursive momentum.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner variable. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        momentum: weight a of what is new; 1 forgets the past. Traced.
        momentum_exponent: a decays as 1/(k + 1)^momentum_exponent; a_0 is 1. Traced.
        system_step_size: η of the series, below 2/λ_max(H), constant; None: `step_size`. Traced.
        num_terms: terms Q of the series of which one is drawn. Static.

    Returns:
        An estimator with the state of `mrbo`.

    Raises:
        ValueError: for steps that are not positive, a `momentum` outside [0, 1] or `num_terms < 1`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "sustain",
        counts={"num_terms": num_terms},
        positive={"step_size": step_size, "system_step_size": system_step_size},
    )
    check_fraction("sustain", momentum=momentum)
    rate = step_size if system_step_size is None else system_step_size
    return momentum_estimator(
        "sustain",
        problem,
        random_neumann(problem, step_size=rate, num_terms=num_terms),
        step_size=step_size,
        step_exponent=step_exponent,
        momentum=momentum,
        momentum_exponent=momentum_exponent,
    )
