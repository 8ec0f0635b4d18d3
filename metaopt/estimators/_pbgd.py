"""PBGD: penalty-based bilevel gradient descent, both variables moving together.

    f(z, θ) + λ p(z, θ),    p = g(z, θ) − min_y g(y, θ)    ("value", V-PBGD)
                         or p = ‖∇_z g(z, θ)‖²             ("gradient", G-PBGD)
    (z, θ) ← (z, θ) − ξ/(1 + λ_k) ∇(f + λ_k p),    y: T steps on g per iteration, warm-started

By Danskin's theorem y is a constant in ∇p. The gradient gap needs one linearisation of ∇_z g
instead of y: ∇p = 2 (H ∇_z g, J ∇_z g). Shen and Chen 2023 (ICML), arXiv:2302.05185, Algorithms 1
and 2. The paper's step is of the order 1/(L_f + λ L_g): here z divides ξ by 1 + λ_k, and so should
the outer step, the caller's.
"""

from typing import Literal, NamedTuple, get_args

import jax
import optax
from jaxtyping import Array, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    decayed,
    descend,
    finish,
    inner_descent,
    linearise,
    outer_gradients,
    value_gap,
)
from metaopt.estimators._checked import checked_estimator

Gap = Literal["value", "gradient"]


class PBGDState(NamedTuple):
    """The iterates.

    Attributes:
        params: z, which minimises the penalised loss: the model.
        solution: y, which minimises g; with the gradient gap it stays where it was.
        count: estimates so far.
    """

    params: Params
    solution: Params
    count: Int[Array, ""]


@checked
def pbgd(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    params_step_size: Scalar = 0.1,
    penalty: Scalar = 10.0,
    penalty_exponent: Scalar = 0.0,
    num_steps: int = 10,
    gap: Gap = "value",
) -> Estimator:
    """Descends a penalised loss in `params` and theta together.

    Args:
        problem: its losses draw their batches from the key.
        step_size: of the T steps on y. Traced.
        params_step_size: ξ; z moves by ξ/(1 + λ_k). Traced.
        penalty: λ_0. Traced.
        penalty_exponent: λ_k grows as (k + 1)^penalty_exponent. Traced.
        num_steps: steps T on y; not used with the gradient gap. Static.
        gap: "value" or "gradient". Static.

    Returns:
        An estimator; `info.aux` has the `penalty` λ_k.

    Raises:
        ValueError: for settings that are not positive, `num_steps < 1` or an unknown `gap`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "pbgd",
        counts={"num_steps": num_steps},
        positive={"step_size": step_size, "params_step_size": params_step_size, "penalty": penalty},
    )
    if gap not in get_args(Gap):
        raise ValueError(f"pbgd: gap={gap!r} is unknown; choose from {get_args(Gap)}.")
    if gap == "value":
        cost = Oracles(num_steps + 2, 1)
    else:
        cost = Oracles(1, 1, 1, 1)

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        return PBGDState(params, params, count)

    def penalty_gradient(params, theta, state, data, key):
        """∇p at (params, theta), and y."""
        key_inner, key_gap = jax.random.split(key)
        if gap == "gradient":
            gradient, pullback = linearise(problem, params, theta, data, key_gap)
            return optax.tree.scale(2, pullback(gradient)), state.solution
        solution = inner_descent(
            problem,
            state.solution,
            theta,
            data,
            key_inner,
            step_size=step_size,
            num_steps=num_steps,
        )
        return value_gap(problem, params, theta, solution, data, key_gap)[1], solution

    def estimate(theta, state, data, key):
        key_gap, key_outer = jax.random.split(key)
        weight = decayed(penalty, state.count, -penalty_exponent)
        gradient, solution = penalty_gradient(state.params, theta, state, data, key_gap)
        loss, outer = outer_gradients(problem, state.params, theta, data, key_outer)
        along_params, along_theta = optax.tree.add_scale(outer, weight, gradient)
        params = descend(state.params, params_step_size / (1 + weight), along_params)
        return finish(
            theta,
            state,
            PBGDState(params, solution, state.count),
            along_theta,
            loss,
            cost,
            inner_steps=num_steps if gap == "value" else 1,
            aux={"penalty": weight},
        )

    return checked_estimator("pbgd", init, estimate)
