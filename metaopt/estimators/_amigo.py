"""AmIGO: amortised implicit differentiation, both inner problems warm-started.

    z ← z − ρ ∇_z g(z, θ), T times;    u ← u − ρ_u (H u − ∇_z f), M times
    g = ∇_θ f − J u,    H u = ∇_z f,    all at the new z, every H and J on a batch of its own

∇_z f is evaluated once and kept for the M steps. Arbel and Mairal 2022 (ICLR), arXiv:2111.14580,
Algorithm 1 with plain stochastic gradient descent for both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    decayed,
    descend,
    finish,
    hessian_product,
    inner_descent,
    linearise,
    outer_gradients,
    replay,
)
from metaopt.estimators._checked import checked_estimator


class AmIGOState(NamedTuple):
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
def amigo(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 0.0,
    system_step_size: Scalar | None = None,
    num_steps: int = 10,
    num_system_steps: int = 10,
) -> Estimator:
    """Estimates the hypergradient after T steps on the inner problem and M on the system.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner steps. Traced.
        step_exponent: ρ and ρ_u decay as 1/(k + 1)^step_exponent. Traced.
        system_step_size: ρ_u of the linear system, below 2/λ_max(H); None: `step_size`. Traced.
        num_steps: inner steps T. Static.
        num_system_steps: steps M on the linear system. Static.

    Returns:
        An estimator that warm-starts z and u.

    Raises:
        ValueError: for steps that are not positive or counts below 1.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "amigo",
        counts={"num_steps": num_steps, "num_system_steps": num_system_steps},
        positive={"step_size": step_size, "system_step_size": system_step_size},
    )
    rate = step_size if system_step_size is None else system_step_size

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        return AmIGOState(params, jax.tree.map(jnp.zeros_like, params), count)

    def solve(params, theta, u, target, data, key, step):
        at = replay(key)

        def one(u, index):
            product = hessian_product(problem, params, theta, u, data, at(index))
            return descend(u, step, optax.tree.sub(product, target)), None

        return jax.lax.scan(one, u, jnp.arange(num_system_steps))[0]

    def estimate(theta, state, data, key):
        key_inner, key_outer, key_system, key_cross = jax.random.split(key, 4)
        step = decayed(step_size, state.count, step_exponent)
        system_step = decayed(rate, state.count, step_exponent)
        params = inner_descent(
            problem, state.params, theta, data, key_inner, step_size=step, num_steps=num_steps
        )
        loss, (target, outer) = outer_gradients(problem, params, theta, data, key_outer)
        u = solve(params, theta, state.u, target, data, key_system, system_step)
        _, pullback = linearise(problem, params, theta, data, key_cross)
        return finish(
            theta,
            state,
            AmIGOState(params, u, state.count),
            optax.tree.sub(outer, pullback(u)[1]),
            loss,
            Oracles(num_steps, 1, num_system_steps, 1),
            inner_steps=num_steps,
        )

    return checked_estimator("amigo", init, estimate)
