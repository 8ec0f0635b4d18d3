"""FSLA: a fully single loop, one variable after the other, momentum on the outer direction.

    z⁺ = z − ρ ∇_z g(z, θ)
    u⁺ = u − ρ_u (H u − ∇_z f)                            at (z⁺, θ)
    d_k = q(z⁺, θ_k, u⁺) + (1 − a_k) (d_{k−1} − q(z, θ_{k−1}, u)),    q = ∇_θ f − J u,    g = d_k

Both q on the same fresh batches; d_0 = q. H u = ∇_z f. Li, Gu and Huang 2022 (AAAI),
arXiv:2112.04660, Algorithm 1. All steps, the caller's outer one too, and a_k decay as 1/√(k + 1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_fraction,
    check_settings,
    decayed,
    descend,
    finish,
    hessian_product,
    linearise,
    outer_gradients,
    strong,
)
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._hypergradient import momentum_weight, recursive_momentum


class FSLAState(NamedTuple):
    """The iterates, the last theta and the averaged direction.

    Attributes:
        params: z, the inner variable.
        u: what solves H u = ∇_z f, like `params`.
        last_theta: θ_{k−1}.
        direction: d_{k−1}, like `theta`.
        count: estimates so far.
    """

    params: Params
    u: Params
    last_theta: Any
    direction: Any
    count: Int[Array, ""]


@checked
def fsla(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 0.5,
    system_step_size: Scalar | None = None,
    system_exponent: Scalar = 0.5,
    momentum: Scalar = 0.5,
    momentum_exponent: Scalar = 0.5,
) -> Estimator:
    """Moves the inner variable, then the linear system, and averages the outer direction.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner variable. Traced.
        step_exponent: ρ decays as 1/(k + 1)^step_exponent. Traced.
        system_step_size: ρ_u of the linear system; None: `step_size`. Traced.
        system_exponent: of the decay of ρ_u. Traced.
        momentum: weight a of what is new; 1 forgets the past. Traced.
        momentum_exponent: a decays as 1/(k + 1)^momentum_exponent; a_0 is 1. Traced.

    Returns:
        An estimator whose state holds the last theta.

    Raises:
        ValueError: for steps that are not positive, or a `momentum` outside [0, 1].
        TypeError: if `theta` has leaves that are not floating-point.
    """
    positive = {"step_size": step_size, "system_step_size": system_step_size}
    check_settings("fsla", counts={}, positive=positive)
    check_fraction("fsla", momentum=momentum)
    rate = step_size if system_step_size is None else system_step_size

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        theta = strong(theta)
        u, direction = jax.tree.map(jnp.zeros_like, (params, theta))
        return FSLAState(params, u, theta, direction, count)

    def outer_direction(params, theta, u, data, key):
        """f and q(params, theta, u)."""
        key_outer, key_cross = jax.random.split(key)
        loss, (_, outer) = outer_gradients(problem, params, theta, data, key_outer)
        _, pullback = linearise(problem, params, theta, data, key_cross)
        return loss, optax.tree.sub(outer, pullback(u)[1])

    def estimate(theta, state, data, key):
        key_inner, key_system, key_target, key_direction = jax.random.split(key, 4)
        step = decayed(step_size, state.count, step_exponent)
        system_step = decayed(rate, state.count, system_exponent)
        gradient = jax.grad(problem.inner_loss)(state.params, theta, data, key_inner)
        params = descend(state.params, step, gradient)

        product = hessian_product(problem, params, theta, state.u, data, key_system)
        target = jax.grad(problem.outer_loss)(params, theta, data, key_target)
        u = descend(state.u, system_step, optax.tree.sub(product, target))

        loss, new = outer_direction(params, theta, u, data, key_direction)
        _, old = outer_direction(
            state.params, state.last_theta, state.u, data, jax.random.clone(key_direction)
        )
        weight = momentum_weight(momentum, state.count, momentum_exponent)
        direction = recursive_momentum(new, old, state.direction, weight=weight)
        return finish(
            theta,
            state,
            FSLAState(params, u, strong(theta), direction, state.count),
            direction,
            loss,
            Oracles(1, 3, 1, 2),
            inner_steps=1,
            aux={"momentum": weight},
        )

    return checked_estimator("fsla", init, estimate)
