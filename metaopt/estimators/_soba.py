"""SOBA: one loop for the inner variable, the linear system and the outer variable.

    z ← z − ρ ∇_z g(z, θ)
    u ← u − ρ_u (H u − ∇_z f(z, θ))
    g = ∇_θ f(z, θ) − J u            H u = ∇_z f, all three at the old (z, u, θ)

One inner and one outer batch, one linearisation of ∇_z g; steps decay as 1/√(k + 1) by default, as
the outer step should. Dagréou et al. 2022 (NeurIPS), arXiv:2201.13409, Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    decayed,
    descend,
    finish,
    linearise,
    outer_gradients,
    project,
)
from metaopt.estimators._checked import checked_estimator


class SOBAState(NamedTuple):
    """The two inner iterates.

    Attributes:
        params: z, the inner variable.
        u: what solves H u = ∇_z f, like `params`.
        count: estimates so far.
    """

    params: Params
    u: Params
    count: Int[Array, ""]


@checked
def soba(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 0.5,
    system_step_size: Scalar | None = None,
    system_exponent: Scalar = 0.5,
    radius: Scalar | None = None,
) -> Estimator:
    """Moves the inner variable, the linear system and theta at once, one batch each.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner variable. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        system_step_size: ρ_u of the linear system; None: `step_size`. Traced.
        system_exponent: of the decay of ρ_u. Traced.
        radius: u is projected onto the ball of this radius, as the theory needs it; None: it is
            not. Traced.

    Returns:
        An estimator; its direction ∇_θ f − J u is taken before z and u move.

    Raises:
        ValueError: for steps or a radius that are not positive.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    positive = {"step_size": step_size, "system_step_size": system_step_size, "radius": radius}
    check_settings("soba", counts={}, positive=positive)
    rate = step_size if system_step_size is None else system_step_size

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        return SOBAState(params, jax.tree.map(jnp.zeros_like, params), count)

    def estimate(theta, state, data, key):
        loss, (inner, system, outer) = soba_directions(
            problem, state.params, theta, state.u, data, key
        )
        step = decayed(step_size, state.count, step_exponent)
        system_step = decayed(rate, state.count, system_exponent)
        new = SOBAState(
            descend(state.params, step, inner),
            project(descend(state.u, system_step, system), radius),
            state.count,
        )
        return finish(theta, state, new, outer, loss, Oracles(1, 1, 1, 1), inner_steps=1)

    return checked_estimator("soba", init, estimate)


def soba_directions(problem, params, theta, u, data, key) -> tuple[Float[Array, ""], tuple]:
    """f and (∇_z g, H u − ∇_z f, ∇_θ f − J u) on one inner and one outer batch."""
    key_inner, key_outer = jax.random.split(key)
    inner, pullback = linearise(problem, params, theta, data, key_inner)
    hessian, mixed = pullback(u)
    loss, (outer_params, outer_theta) = outer_gradients(problem, params, theta, data, key_outer)
    system = optax.tree.sub(hessian, outer_params)
    return loss, (inner, system, optax.tree.sub(outer_theta, mixed))
