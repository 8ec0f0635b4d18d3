"""PZOBO: the response of the inner loop from finite differences in random directions.

    z_N(θ): N steps z ← z − ρ ∇_z g(z, θ) from the z of the last estimate;    w_q ~ N(0, I)
    δ_q = (z_N(θ + μ w_q) − z_N(θ)) / μ,        g = ∇_θ f + (1/Q) Σ_q ⟨δ_q, ∇_z f⟩ w_q

with f at (z_N(θ), θ). No second derivative and no reverse pass through the loop; all Q + 1 loops
see the same batches. In expectation, for small μ, the gradient through the N steps from a constant
start. Sow, Ji and Liang 2022 (NeurIPS), arXiv:2110.07004, Algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt import tree
from metaopt.core import BilevelProblem, Estimator, Oracles, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    finish,
    inner_descent,
    outer_gradients,
)
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._hypergradient import DoubleLoopState


@checked
def pzobo(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    mu: Scalar = 0.1,
    num_steps: int = 10,
    num_directions: int = 10,
) -> Estimator:
    """Estimates the gradient through N inner steps from Q perturbed runs.

    Args:
        problem: its losses draw their batches from the key.
        step_size: ρ of the inner steps. Traced.
        mu: μ, scale of the perturbations, in units of `theta`. Traced.
        num_steps: inner steps N of a run. Static.
        num_directions: perturbed runs Q, vectorised. Static.

    Returns:
        An estimator that warm-starts z; `inner_steps` counts those of the unperturbed run.

    Raises:
        ValueError: for settings that are not positive or counts below 1.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "pzobo",
        counts={"num_steps": num_steps, "num_directions": num_directions},
        positive={"step_size": step_size, "mu": mu},
    )

    def init(theta, data, key):
        del data
        return DoubleLoopState(*begin(problem, key))

    def estimate(theta, state, data, key):
        key_inner, key_outer, key_directions = jax.random.split(key, 3)

        def response(theta, key):
            return inner_descent(
                problem, state.params, theta, data, key, step_size=step_size, num_steps=num_steps
            )

        params = response(theta, key_inner)
        loss, (outer_params, outer_theta) = outer_gradients(problem, params, theta, data, key_outer)

        def one(key):
            direction = tree.sample_normal(theta, key)
            perturbed = tree.cast_like(optax.tree.add_scale(theta, mu, direction), theta)
            moved = optax.tree.sub(response(perturbed, jax.random.clone(key_inner)), params)
            return optax.tree.scale(optax.tree.vdot(moved, outer_params) / mu, direction)

        indirect = jax.vmap(one)(jax.random.split(key_directions, num_directions))
        return finish(
            theta,
            state,
            state._replace(params=params),
            optax.tree.add(outer_theta, jax.tree.map(lambda x: jnp.mean(x, axis=0), indirect)),
            loss,
            Oracles((num_directions + 1) * num_steps, 1),
            inner_steps=num_steps,
        )

    return checked_estimator("pzobo", init, estimate)
