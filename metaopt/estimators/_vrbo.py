"""VRBO: an inner loop that reduces the variance of both directions, reset now and then.

    D(w) = (∇_z g, ∇_θ f − J u) at w = (z, θ),    u = η Σ_{q ≤ Q} Π_{i ≤ q} (I − η H_i) ∇_z f
    T times at the new θ:   d ← d + D(w) − D(w_last) on one batch;   w_last ← w;   z ← z − ρ d^z
    every p-th estimate:    d = D(w) on all data;    g = d^θ;    H u = ∇_z f

The first inner step compares (z, θ) with the last point of the loop before, so that the outer step
is accounted for. Yang, Ji and Liang 2021 (NeurIPS), arXiv:2106.04692, Algorithm 2; recursive
gradients (SPIDER) by Fang et al. 2018, arXiv:1807.01695. The inner loop follows the outer step
there; here it opens the next estimate, the same sequence. In the first estimate it stands still.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked, minibatched
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    descend,
    finish,
    full_batches,
    replay,
    strong,
)
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._hypergradient import both_directions, neumann, recursive_momentum


class VRBOState(NamedTuple):
    """The inner variable, the last point and the directions there.

    Attributes:
        params: the inner variable.
        last_params: the last inner variable at which the directions were evaluated.
        last_theta: the theta of that point.
        directions: d, like (`params`, `theta`).
        count: estimates so far.
    """

    params: Params
    last_params: Params
    last_theta: Any
    directions: tuple[Params, Any]
    count: Int[Array, ""]


@checked
def vrbo(
    problem: BilevelProblem,
    *,
    batch_size: int | None = None,
    period: int = 10,
    step_size: Scalar = 0.1,
    system_step_size: Scalar | None = None,
    num_steps: int = 10,
    num_terms: int = 10,
) -> Estimator:
    """Corrects both directions along an inner loop, and computes them anew every `period`
    estimates.

    Args:
        problem: losses that are means over the rows of `data.inner` and `data.outer`; resets use
            all.
        batch_size: rows of the batches of the inner loop, drawn with replacement; None: the problem
            is used as it is, with the key. Static.
        period: estimates p between resets. Static.
        step_size: ρ of the inner steps, constant. Traced.
        system_step_size: η of the series, below 2/λ_max(H); None: `step_size`. Traced.
        num_steps: inner steps T. Static.
        num_terms: Hessian products Q of one series. Static.

    Returns:
        An estimator. Its oracles count a gradient on all data as the number of batches that it has.
        Under `vmap` over states every estimate computes the reset; map over all but their count.

    Raises:
        ValueError: for steps that are not positive or counts below 1.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "vrbo",
        counts={"period": period, "num_steps": num_steps, "num_terms": num_terms},
        positive={"step_size": step_size, "system_step_size": system_step_size},
    )
    rate = step_size if system_step_size is None else system_step_size
    sampled = problem if batch_size is None else minibatched(problem, batch_size=batch_size)
    series = neumann(sampled, step_size=rate, num_terms=num_terms)
    full_series = neumann(problem, step_size=rate, num_terms=num_terms)

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        theta = strong(theta)
        zeros = jax.tree.map(jnp.zeros_like, (params, theta))
        return VRBOState(params, params, theta, zeros, count)

    def inner_loop(theta, state, data, key):
        at = replay(key)

        def one(state, index):
            new, _ = both_directions(sampled, series, state.params, theta, data, at(index))
            old, _ = both_directions(
                sampled, series, state.last_params, state.last_theta, data, at(index)
            )
            directions = recursive_momentum(new, old, state.directions, weight=0)
            params = descend(state.params, step_size, directions[0])
            return VRBOState(params, state.params, strong(theta), directions, state.count), None

        return jax.lax.scan(one, state, jnp.arange(num_steps))[0]

    def estimate(theta, state, data, key):
        key_loop, key_reset, key_loss = jax.random.split(key, 3)
        moved = inner_loop(theta, state, data, key_loop)
        key_data, key_impl = jax.random.key_data(key_reset), jax.random.key_impl(key_reset)

        def reset(moved):
            key = jax.random.wrap_key_data(key_data, impl=key_impl)
            directions, _ = both_directions(problem, full_series, moved.params, theta, data, key)
            return moved._replace(
                last_params=moved.params,
                last_theta=strong(theta),
                directions=strong(directions),
            )

        now = state.count % period == 0
        new = jax.lax.cond(now, reset, lambda moved: moved, moved)
        loss = sampled.outer_loss(new.params, theta, data, key_loss)
        inner, outer = full_batches(data, batch_size)
        inner, outer = jnp.where(now, inner, 0), jnp.where(now, outer, 0)
        evaluations = 2 * num_steps
        oracles = Oracles(
            evaluations + inner,
            evaluations + outer,
            (evaluations + inner) * num_terms,
            evaluations + inner,
        )
        return finish(theta, state, new, new.directions[1], loss, oracles, inner_steps=num_steps)

    return checked_estimator("vrbo", init, estimate)
