"""SAMA: identity for the inverse Hessian, corrected for an adaptive inner optimizer.

    w = −(∂update/∂gradient)ᵀ ∇_z f,    g = ∇_θ f − J w

`update` is the last inner update as a function of its gradient q. In implicit differentiation w
stands for u, H u = ∇_z f: for gradient descent it is the step size times ∇_z f. For Adam, update =
−α m/√s, the factor is diagonal, by the paper

    α [(1 − b₁) b₂ s_old − b₁ (1 − b₂) q m_old] / s^{3/2}

without bias correction and stabiliser; here it is taken from the optimizer itself, whichever it is,
by differentiating its update. J w is exact or, as in the paper, a central difference at a distance
α from z. Choe et al. 2023 (NeurIPS), arXiv:2310.05674, §3.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import optax
from jaxtyping import Array, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    finish,
    finite_difference,
    linearise,
    optimise,
    outer_gradients,
)
from metaopt.estimators._checked import checked_estimator

Mixed = Literal["exact", "finite_difference"]


class SAMAState(NamedTuple):
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
def sama(
    problem: BilevelProblem,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 1,
    mixed: Mixed = "exact",
    alpha: Scalar = 1.0,
) -> Estimator:
    """Estimates the hypergradient of adaptive inner training at the price of a few gradients.

    Args:
        problem: its losses draw their batches from the key.
        inner_opt: any optax optimizer whose update is differentiable in the gradient: give Adam an
            `eps_root`, for the square root of a zero moment has no derivative. Static.
        num_steps: inner steps per estimate. Static.
        mixed: how J w is computed: "exact" by reverse mode, or "finite_difference" from two
            gradients. Static.
        alpha: distance of the two points of the finite difference from z. Traced.

    Returns:
        An estimator; J w is taken at the new z, on the batch of the last inner step.

    Raises:
        ValueError: for `num_steps < 1`, an `alpha` that is not positive or an unknown `mixed`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings("sama", counts={"num_steps": num_steps}, positive={"alpha": alpha})
    if mixed not in get_args(Mixed):
        raise ValueError(f"sama: mixed={mixed!r} is unknown; choose from {get_args(Mixed)}.")
    opt = optax.with_extra_args_support(inner_opt)

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        return SAMAState(params, opt.init(params), count)

    def last_step(params, theta, opt_state, data, key):
        """The step and the transposed derivative of its update."""
        loss, gradient = jax.value_and_grad(problem.inner_loss)(params, theta, data, key)

        def update(gradient):
            return opt.update(gradient, opt_state, params, value=loss)

        updates, pullback, opt_state = jax.vjp(update, gradient, has_aux=True)
        return optax.apply_updates(params, updates), opt_state, pullback

    def mixed_product(params, theta, vector, data, key):
        if mixed == "exact":
            return linearise(problem, params, theta, data, key)[1](vector)[1]
        return finite_difference(problem, params, theta, vector, data, key, distance=alpha)

    def estimate(theta, state, data, key):
        key_inner, key_last, key_outer = jax.random.split(key, 3)
        params, opt_state = optimise(
            problem,
            opt,
            state.params,
            theta,
            state.opt_state,
            data,
            key_inner,
            num_steps=num_steps - 1,
        )
        params, opt_state, pullback = last_step(params, theta, opt_state, data, key_last)
        loss, (outer_params, outer_theta) = outer_gradients(problem, params, theta, data, key_outer)
        # The pullback is that of an update, which descends; the paper's factor is its negative.
        vector = optax.tree.scale(-1, pullback(outer_params)[0])
        product = mixed_product(params, theta, vector, data, jax.random.clone(key_last))
        exact = mixed == "exact"
        return finish(
            theta,
            state,
            SAMAState(params, opt_state, state.count),
            optax.tree.sub(outer_theta, product),
            loss,
            Oracles(num_steps + 2 * (not exact), 1, 0, int(exact)),
            inner_steps=num_steps,
        )

    return checked_estimator("sama", init, estimate)
