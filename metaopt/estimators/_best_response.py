"""Learned best response: self-tuning networks.

The response of the inner problem to theta is modelled by a linear function about the current theta,
and the model is fitted to perturbed inner problems, e ~ N(0, σ² I):

    y(θ) = U + V (θ − c),    c ← θ
    (U, V) ← inner_opt of ∇_(U,V) g(y(θ + e), θ + e),        K times
    grad = ∂f/∂θ + Vᵀ ∂f/∂y,    at y(θ) = U

MacKay et al. 2019 (ICLR), arXiv:1903.03088, with the centring of Bae and Grosse 2020 (NeurIPS),
arXiv:2010.13514. Differs from the papers: the response is a full matrix, not a gated low-rank one
per layer; sigma is given, not tuned through an entropy bonus; where theta has moved, U moves along
the response, so that a new centre changes the coordinates and not the function.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from metaopt import tree
from metaopt.core import BilevelProblem, Estimate, EstimateInfo, Estimator, Oracles, Scalar, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import check_count, check_positive, perturbation


class Response(NamedTuple):
    """A linear model of the inner solution.

    Attributes:
        offset: U, the modelled solution at the centre; structure of `params`.
        slope: V, leaves `[*params_leaf.shape, theta_size]`, theta as one vector.
    """

    offset: PyTree
    slope: PyTree


class BestResponseState(NamedTuple):
    """What is carried between estimates.

    Attributes:
        response: the model, about `centre`.
        centre: theta of the last estimate.
        opt_state: of the inner optimizer.
    """

    response: Response
    centre: PyTree
    opt_state: Any


def respond(response: Response, displacement: Float[Array, "m"]) -> PyTree:
    """The modelled solution at a displacement of theta from the centre."""

    def one(offset, slope):
        return offset + jnp.tensordot(slope, displacement.astype(slope.dtype), axes=1)

    return jax.tree.map(one, response.offset, response.slope)


@checked
def best_response(
    problem: BilevelProblem,
    inner_opt: optax.GradientTransformation,
    *,
    sigma: Scalar = 0.5,
    num_steps: int = 2,
) -> Estimator:
    """Fits the response of `params` to theta and differentiates through the fit. Biased.

    One run trains `params` and tunes theta together, without second derivatives and without inner
    loops to the end. The slope has |params| · |theta| numbers, so theta should be small.

    Args:
        problem: inner and outer loss; `inner_loss` must be defined around theta.
        inner_opt: any optax optimizer, for the response.
        sigma: scale of the perturbations of theta, in its units: too small, and the slope is not
            determined; too large, and the response is no longer linear. Traced.
        num_steps: steps K of the fit per estimate. Static.

    Returns:
        An estimator whose state holds the response; `state.response.offset` are the params.

    Raises:
        ValueError: for a non-positive `sigma` or `num_steps < 1`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    name = "best_response"
    check_positive(name, sigma=sigma)
    check_count(name, num_steps=num_steps)
    inner_opt = optax.with_extra_args_support(inner_opt)

    def init(theta, data, key):
        del data
        params = problem.init(key)
        size = ravel_pytree(theta)[0].size
        slope = jax.tree.map(lambda x: jnp.zeros((*x.shape, size), x.dtype), params)
        response = Response(params, slope)
        return BestResponseState(response, theta, inner_opt.init(response))

    def fit(theta, data, key, response, opt_state):
        key_eps, key_loss = jax.random.split(key)
        eps = perturbation(theta, sigma, key_eps)

        def loss(response):
            params = respond(response, ravel_pytree(eps)[0])
            return problem.inner_loss(params, optax.tree.add(theta, eps), data, key_loss)

        value, grads = jax.value_and_grad(loss)(response)
        updates, opt_state = inner_opt.update(grads, opt_state, response, value=value)
        return cast(Response, optax.apply_updates(response, updates)), opt_state

    def estimate(theta, state, data, key):
        key_fit, key_outer = jax.random.split(key)
        moved = ravel_pytree(theta)[0] - ravel_pytree(state.centre)[0]
        response = state.response._replace(offset=respond(state.response, moved))

        def one_step(carry, index):
            return fit(theta, data, jax.random.fold_in(key_fit, index), *carry), None

        (response, opt_state), _ = jax.lax.scan(
            one_step, (response, state.opt_state), jnp.arange(num_steps)
        )

        def outer(x):
            displacement = ravel_pytree(x)[0] - ravel_pytree(theta)[0]
            return problem.outer_loss(respond(response, displacement), x, data, key_outer)

        loss, grad = jax.value_and_grad(outer)(theta)
        new = BestResponseState(response, theta, opt_state)
        finite = tree.all_finite(grad) & tree.all_finite(new)
        grad = tree.where(finite, grad, jax.tree.map(jnp.zeros_like, grad))
        zero = jnp.zeros((), jnp.int32)
        steps = jnp.array(num_steps, jnp.int32)
        info = EstimateInfo(
            nonfinite=1 - finite.astype(jnp.float32),
            frozen=jnp.zeros(()),
            spread=jnp.zeros(()),
            inner_steps=steps,
            oracles=Oracles(steps, jnp.ones((), jnp.int32), zero, zero),
        )
        return Estimate(grad, loss, info), tree.where(finite, new, state)

    return checked_estimator("best_response", init, estimate)
