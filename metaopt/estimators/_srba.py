"""SRBA: the three directions of SOBA with recursive variance reduction.

    D(w) = (∇_z g, H u − ∇_z f, ∇_θ f − J u) at w = (z, u, θ)
    d_k = d_{k−1} + D(w_k) − D(w_{k−1}) on the same batches;  every p-th estimate D on all data
    z ← z − ρ d^z,    u ← u − ρ_u d^u,    g = d^θ        simultaneous;    H u = ∇_z f

Constant steps, near-optimal for finite sums. Dagréou et al. 2023, arXiv:2302.08766, Algorithm 1;
recursive gradients (SARAH) by Nguyen et al. 2017, arXiv:1703.00102. p about half of the batches of
both pools is the authors' choice in their experiments. No tables: memory for two points and the
directions.
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
    project,
    strong,
)
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._hypergradient import recursive_momentum
from metaopt.estimators._soba import soba_directions


class SRBAState(NamedTuple):
    """The two inner iterates, the last point and the directions there.

    Attributes:
        params: z_k, the inner variable.
        u: u_k, what solves H u = ∇_z f, like `params`.
        last: (z, θ, u) of the last estimate.
        directions: d_{k−1}, like (`params`, `u`, `theta`).
        count: estimates so far.
    """

    params: Params
    u: Params
    last: tuple[Params, Any, Params]
    directions: tuple[Params, Params, Any]
    count: Int[Array, ""]


@checked
def srba(
    problem: BilevelProblem,
    *,
    batch_size: int | None = None,
    period: int = 10,
    step_size: Scalar = 0.1,
    system_step_size: Scalar | None = None,
    radius: Scalar | None = None,
) -> Estimator:
    """Moves the inner variable, the linear system and theta at once, with reduced variance.

    Args:
        problem: losses that are means over the rows of `data.inner` and `data.outer`; resets use
            all.
        batch_size: rows of the batches between resets, drawn with replacement; None: the problem is
            used as it is, with the key. Static.
        period: estimates p between resets. Static.
        step_size: ρ of the inner variable, constant. Traced.
        system_step_size: ρ_u of the linear system; None: `step_size`. Traced.
        radius: u is projected onto the ball of this radius; None: it is not. Traced.

    Returns:
        An estimator. Its oracles count a gradient on all data as the number of batches that it has.
        Under `vmap` over states every estimate computes the reset; map over all but their count.

    Raises:
        ValueError: for steps or a radius that are not positive, or `period < 1`.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_settings(
        "srba",
        counts={"period": period},
        positive={"step_size": step_size, "system_step_size": system_step_size, "radius": radius},
    )
    rate = step_size if system_step_size is None else system_step_size
    sampled = problem if batch_size is None else minibatched(problem, batch_size=batch_size)

    def init(theta, data, key):
        del data
        params, count = begin(problem, key)
        theta = strong(theta)
        u = jax.tree.map(jnp.zeros_like, params)
        zeros = jax.tree.map(jnp.zeros_like, (params, params, theta))
        return SRBAState(params, u, (params, theta, u), zeros, count)

    def estimate(theta, state, data, key):
        key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)

        def directions(losses, params, theta, u):
            key = jax.random.wrap_key_data(key_data, impl=key_impl)
            return soba_directions(losses, params, theta, u, data, key)

        def reset(point):
            loss, values = directions(problem, *point)
            return loss, strong(values)

        def recursion(point):
            loss, new = directions(sampled, *point)
            _, old = directions(sampled, *state.last)
            return loss, recursive_momentum(new, old, state.directions, weight=0)

        point = (state.params, theta, state.u)
        now = state.count % period == 0
        loss, values = jax.lax.cond(now, reset, recursion, point)
        new = SRBAState(
            descend(state.params, step_size, values[0]),
            project(descend(state.u, rate, values[1]), radius),
            strong(point),
            values,
            state.count,
        )
        inner, outer = (jnp.where(now, count, 2) for count in full_batches(data, batch_size))
        oracles = Oracles(inner, outer, inner, inner)
        return finish(theta, state, new, values[2], loss, oracles, inner_steps=1)

    return checked_estimator("srba", init, estimate)
