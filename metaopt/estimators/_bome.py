"""BOME: bilevel descent by a dynamic barrier on the value gap.

    q(z, θ) = g(z, θ) − g(y, θ),    y = T steps on g from z, held constant
    λ = max{(φ − ⟨∇f, ∇q⟩)/‖∇q‖², 0},    φ = η ‖∇q‖² or η q
    (z, θ) ← (z, θ) − ξ (∇f + λ ∇q)        inner products over z and θ together

The direction is the nearest to ∇f that still closes the gap at a rate of φ. First derivatives only.
Liu et al. 2022 (NeurIPS), arXiv:2209.08709, Algorithm 1, a deterministic method: noise in ∇q biases
λ. The outer step, the caller's, should equal ξ.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from metaopt import tree
from metaopt.core import BilevelProblem, Estimator, Oracles, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    descend,
    finish,
    inner_descent,
    outer_gradients,
    value_gap,
)
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._hypergradient import DoubleLoopState

Barrier = Literal["gradient", "value"]


@checked
def bome(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    params_step_size: Scalar = 0.1,
    eta: Scalar = 0.5,
    num_steps: int = 10,
    barrier: Barrier = "gradient",
) -> Estimator:
    """Moves `params` and theta along one direction that keeps the inner problem solved.

    Args:
        problem: its losses draw their batches from the key.
        step_size: of the T steps that find y. Traced.
        params_step_size: ξ, of z. Traced.
        eta: η, how fast the gap has to close. Traced.
        num_steps: steps T on g. Static.
        barrier: φ = η ‖∇q‖² ("gradient") or η q ("value"). Static.

    Returns:
        An estimator; `info.aux` has the `penalty` λ and the `gap` q.

    Raises:
        ValueError: for settings that are not positive, `num_steps < 1` or an unknown `barrier`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "bome",
        counts={"num_steps": num_steps},
        positive={"step_size": step_size, "params_step_size": params_step_size, "eta": eta},
    )
    if barrier not in get_args(Barrier):
        raise ValueError(f"bome: barrier={barrier!r} is unknown; choose from {get_args(Barrier)}.")

    def init(theta, data, key):
        del data
        return DoubleLoopState(*begin(problem, key))

    def estimate(theta, state, data, key):
        key_inner, key_gap, key_outer = jax.random.split(key, 3)
        params = state.params
        solution = inner_descent(
            problem, params, theta, data, key_inner, step_size=step_size, num_steps=num_steps
        )
        gap, barrier_gradient = value_gap(problem, params, theta, solution, data, key_gap)
        loss, outer = outer_gradients(problem, params, theta, data, key_outer)

        square = optax.tree.vdot(barrier_gradient, barrier_gradient)
        rate = eta * (square if barrier == "gradient" else gap)
        slope = optax.tree.vdot(outer, barrier_gradient)
        # Where the gap is flat there is nothing to close, and nothing to divide by.
        flat = square == 0
        weight = jnp.where(flat, 0, jnp.maximum((rate - slope) / jnp.where(flat, 1, square), 0))
        along_params, along_theta = optax.tree.add_scale(outer, weight, barrier_gradient)
        return finish(
            theta,
            state,
            state._replace(params=descend(params, params_step_size, along_params)),
            tree.cast_like(along_theta, theta),
            loss,
            Oracles(num_steps + 2, 1),
            inner_steps=num_steps,
            aux={"penalty": weight, "gap": gap},
        )

    return checked_estimator("bome", init, estimate)
