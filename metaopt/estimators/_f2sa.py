"""F2SA: fully first-order stochastic approximation by a value-gap penalty.

    L_λ(θ, z, y) = f(z, θ) + λ (g(z, θ) − g(y, θ)),    y -> argmin g,  z -> argmin f + λ g
    y ← y − γ_k ∇_z g(y, θ),    z ← z − α_k (∇_z f(z, θ) + λ_k ∇_z g(z, θ)),    T rounds
    g = ∇_θ f(z, θ) + λ_k (∇_θ g(z, θ) − ∇_θ g(y, θ))        = ∇h + O(1/λ_k)

No second derivative. Kwon et al. 2023 (ICML), arXiv:2301.10945, Algorithm 1, with γ_k ~ k^{−4/7},
λ_k ~ k^{1/7} and so α_k ~ γ_k/λ_k ~ k^{−5/7} by default, their choice for noise at both levels; the
outer step should decay as α_k does. For noise in f only they take 2/5 and 1/5, without noise 0 and
1/3.

Differs from the paper: α_k = γ_k/(1 + λ_k) in place of γ_k/(2 λ_k), so that α_k λ_k stays below γ_k
at every λ; both iterates see the same batches of g, and so do both gradients in the direction,
because λ multiplies what does not cancel in their difference. In float32 that difference loses its
digits for λ beyond about 10⁴.
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
    outer_gradients,
    replay,
)
from metaopt.estimators._checked import checked_estimator


class F2SAState(NamedTuple):
    """The two inner iterates.

    Attributes:
        params: y, which minimises g: the model.
        penalised: z, which minimises f + λ g.
        count: estimates so far.
    """

    params: Params
    penalised: Params
    count: Int[Array, ""]


@checked
def f2sa(
    problem: BilevelProblem,
    *,
    step_size: Scalar = 0.1,
    step_exponent: Scalar = 4 / 7,
    penalty: Scalar = 1.0,
    penalty_exponent: Scalar = 1 / 7,
    num_steps: int = 10,
) -> Estimator:
    """Estimates the hypergradient from gradients alone, with a bias of O(1/λ).

    Args:
        problem: its losses draw their batches from the key.
        step_size: γ_0, of y; that of z is γ_k/(1 + λ_k). Traced.
        step_exponent: γ_k decays as 1/(k + 1)^step_exponent. Traced.
        penalty: λ_0. Traced.
        penalty_exponent: λ_k grows as (k + 1)^penalty_exponent; 0 keeps it. Traced.
        num_steps: rounds T per estimate. Static.

    Returns:
        An estimator; `info.aux` has the `penalty` λ_k and the `penalised_step` α_k.

    Raises:
        ValueError: for a step or a penalty that is not positive, or `num_steps < 1`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    positive = {"step_size": step_size, "penalty": penalty}
    check_settings("f2sa", counts={"num_steps": num_steps}, positive=positive)
    inner_params = jax.grad(problem.inner_loss)
    inner_theta = jax.grad(problem.inner_loss, argnums=1)

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        return F2SAState(params, params, count)

    def rounds(theta, state, data, key, step, weight):
        at = replay(key)

        def one(carry, index):
            free, held = carry
            key_inner, key_outer = jax.random.split(at(index))
            free_gradient = inner_params(free, theta, data, key_inner)
            held_gradient = inner_params(held, theta, data, jax.random.clone(key_inner))
            outer = jax.grad(problem.outer_loss)(held, theta, data, key_outer)
            direction = optax.tree.add_scale(outer, weight, held_gradient)
            free = descend(free, step, free_gradient)
            return (free, descend(held, step / (1 + weight), direction)), None

        return jax.lax.scan(one, (state.params, state.penalised), jnp.arange(num_steps))[0]

    def estimate(theta, state, data, key):
        key_rounds, key_inner, key_outer = jax.random.split(key, 3)
        step = decayed(step_size, state.count, step_exponent)
        weight = decayed(penalty, state.count, -penalty_exponent)
        free, held = rounds(theta, state, data, key_rounds, step, weight)

        loss, (_, outer) = outer_gradients(problem, held, theta, data, key_outer)
        gap = optax.tree.sub(
            inner_theta(held, theta, data, key_inner),
            inner_theta(free, theta, data, jax.random.clone(key_inner)),
        )
        return finish(
            theta,
            state,
            F2SAState(free, held, state.count),
            optax.tree.add_scale(outer, weight, gap),
            loss,
            Oracles(2 * num_steps + 2, num_steps + 1),
            inner_steps=num_steps,
            aux={"penalty": weight, "penalised_step": step / (1 + weight)},
        )

    return checked_estimator("f2sa", init, estimate)
