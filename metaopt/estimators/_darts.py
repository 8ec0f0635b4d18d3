"""Second-order DARTS: one virtual inner step, its derivative by finite differences.

    z' = z − ξ ∇_z g(z, θ),    b = ∇_z f(z', θ),    z± = z ± ε b/‖b‖
    g = ∇_θ f(z', θ) − ξ ‖b‖ (∇_θ g(z⁺, θ) − ∇_θ g(z⁻, θ)) / (2 ε)

which is the gradient of f(z − ξ ∇_z g(z, θ), θ) up to O(ε²), without a second derivative: −ξ b
stands for the −u of implicit differentiation, H u = ∇_z f, with ξ times the identity for H⁻¹. Liu
et al. 2019 (ICLR), arXiv:1806.09055, §2.3, equations 7 and 8; ε = 0.01.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    descend,
    finish,
    finite_difference,
    optimise,
    outer_gradients,
)
from metaopt.estimators._checked import checked_estimator


class DARTSState(NamedTuple):
    """Inner training.

    Attributes:
        params: the inner variable.
        opt_state: of the inner optimizer.
        count: estimates so far.
    """

    params: Params
    opt_state: Any
    count: Int[Array, ""]


@checked
def darts(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    virtual_step_size: Scalar | None = None,
    eps: Scalar = 0.01,
    num_steps: int = 1,
    inner_opt: optax.GradientTransformation | None = None,
) -> Estimator:
    """Estimates the gradient through one virtual step, after `num_steps` real ones.

    Args:
        problem: its losses draw their batches from the key.
        step_size: of the inner steps, where `inner_opt` is None. Traced.
        virtual_step_size: ξ; 0 gives first-order DARTS; None: `step_size`. Traced.
        eps: ε, the distance of the two points from z. Traced.
        num_steps: inner steps per estimate. Static.
        inner_opt: any optax optimizer; None: gradient descent with `step_size`. Static.

    Returns:
        An estimator; the virtual step and both gradients in θ share one batch.

    Raises:
        ValueError: for a `step_size` or `eps` that is not positive, or `num_steps < 1`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    positive = {"step_size": step_size, "eps": eps}
    check_settings("darts", counts={"num_steps": num_steps}, positive=positive)
    virtual = step_size if virtual_step_size is None else virtual_step_size
    opt = optax.with_extra_args_support(optax.sgd(step_size) if inner_opt is None else inner_opt)

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        return DARTSState(params, opt.init(params), count)

    def estimate(theta, state, data, key):
        key_inner, key_batch, key_outer = jax.random.split(key, 3)
        params, opt_state = optimise(
            problem, opt, state.params, theta, state.opt_state, data, key_inner, num_steps=num_steps
        )
        gradient = jax.grad(problem.inner_loss)(params, theta, data, key_batch)
        ahead = descend(params, virtual, gradient)
        loss, (outer_params, outer_theta) = outer_gradients(problem, ahead, theta, data, key_outer)
        mixed = finite_difference(
            problem,
            params,
            theta,
            outer_params,
            data,
            jax.random.clone(key_batch),
            distance=eps,
        )
        return finish(
            theta,
            state,
            DARTSState(params, opt_state, state.count),
            optax.tree.add_scale(outer_theta, -jnp.asarray(virtual), mixed),
            loss,
            Oracles(num_steps + 3, 1),
            inner_steps=num_steps,
        )

    return checked_estimator("darts", init, estimate)
