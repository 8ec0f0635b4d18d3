"""MRBO: recursive momentum on the inner gradient and on the hypergradient.

    D(w) = (∇_z g, ∇_θ f − J u) at w = (z, θ),    u = η Σ_{q ≤ Q} Π_{i ≤ q} (I − η H_i) ∇_z f
    d_k = D(w_k) + (1 − a_k) (d_{k−1} − D(w_{k−1})),    both on the same batches;    d_0 = D(w_0)
    z ← z − ρ_k d^z,    g = d^θ        simultaneous;    H u = ∇_z f

Yang, Ji and Liang 2021 (NeurIPS), arXiv:2106.04692, Algorithm 1; recursive momentum (STORM) by
Cutkosky and Orabona 2019, arXiv:1905.10018. ρ_k and the outer step decay as (k + 1)^{−1/3}, a_k as
(k + 1)^{−2/3}.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_fraction,
    check_settings,
    decayed,
    descend,
    finish,
    strong,
)
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._hypergradient import (
    Inverse,
    both_directions,
    momentum_weight,
    neumann,
    recursive_momentum,
)


class MomentumState(NamedTuple):
    """The inner variable, the last point and the averaged directions there.

    Attributes:
        params: z_k, the inner variable.
        last_params: z_{k−1}.
        last_theta: θ_{k−1}.
        directions: d_{k−1}, like (`params`, `theta`).
        count: estimates so far.
    """

    params: Params
    last_params: Params
    last_theta: Any
    directions: tuple[Params, Any]
    count: Int[Array, ""]


@checked
def mrbo(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 1 / 3,
    momentum: Scalar = 0.5,
    momentum_exponent: Scalar = 2 / 3,
    system_step_size: Scalar | None = None,
    num_terms: int = 10,
) -> Estimator:
    """Moves the inner variable and theta at once, along directions of reduced variance.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner variable. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        momentum: weight a of what is new; 1 forgets the past. Traced.
        momentum_exponent: a decays as 1/(k + 1)^momentum_exponent; a_0 is 1. Traced.
        system_step_size: η of the series, below 2/λ_max(H), constant; None: `step_size`. Traced.
        num_terms: Hessian products Q at each of the two points. Static.

    Returns:
        An estimator whose state holds the last point.

    Raises:
        ValueError: for steps that are not positive, a `momentum` outside [0, 1] or `num_terms < 1`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "mrbo",
        counts={"num_terms": num_terms},
        positive={"step_size": step_size, "system_step_size": system_step_size},
    )
    check_fraction("mrbo", momentum=momentum)
    rate = step_size if system_step_size is None else system_step_size
    return momentum_estimator(
        "mrbo",
        problem,
        neumann(problem, step_size=rate, num_terms=num_terms),
        step_size=step_size,
        step_exponent=step_exponent,
        momentum=momentum,
        momentum_exponent=momentum_exponent,
    )


def momentum_estimator(
    name: str,
    problem: BilevelProblem,
    inverse: Inverse,
    *,
    step_size: Scalar,
    step_exponent: Scalar,
    momentum: Scalar,
    momentum_exponent: Scalar,
) -> Estimator:
    """The recursion, for any way to apply H⁻¹."""

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        theta = strong(theta)
        zeros = jax.tree.map(jnp.zeros_like, (params, theta))
        return MomentumState(params, params, theta, zeros, count)

    def estimate(theta, state, data, key):
        new, implicit = both_directions(problem, inverse, state.params, theta, data, key)
        old, _ = both_directions(
            problem, inverse, state.last_params, state.last_theta, data, jax.random.clone(key)
        )
        weight = momentum_weight(momentum, state.count, momentum_exponent)
        directions = recursive_momentum(new, old, state.directions, weight=weight)
        step = decayed(step_size, state.count, step_exponent)
        params = descend(state.params, step, directions[0])
        # Both points share their random numbers, and so the number of products.
        oracles = Oracles(2, 2, 2 * implicit.products, 2)
        return finish(
            theta,
            state,
            MomentumState(params, state.params, strong(theta), directions, state.count),
            directions[1],
            implicit.loss,
            oracles,
            inner_steps=1,
            aux={"momentum": weight},
        )

    return checked_estimator("momentum_estimator", init, estimate)
