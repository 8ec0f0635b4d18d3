"""SABA: SOBA on a finite sum, its noise reduced by tables of past gradients.

    v = m_b' − m_b + m̄    for each of ∇_z g, H u, J u (batch i) and ∇_z f, ∇_θ f (batch j)

m_b' is the new value on the drawn batch, m_b what the table had for it, m̄ the mean of the table.
With those directions z, u and θ move as in SOBA, with constant steps. Dagréou et al. 2022
(NeurIPS), arXiv:2201.13409, Algorithm 2; Defazio et al. 2014 (SAGA), arXiv:1407.0202.

Memory: B_in (2 dim z + dim θ) + B_out (dim z + dim θ) numbers for B_in and B_out batches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from metaopt import tree
from metaopt.core import BilevelProblem, Estimator, Oracles, Params, Scalar, checked
from metaopt.estimators._bilevel import (
    begin,
    check_settings,
    descend,
    linearise,
    num_batches,
    outer_gradients,
    project,
    report,
    take_batch,
)
from metaopt.estimators._checked import checked_estimator


class GradientTable(NamedTuple):
    """Past values, one per batch, and their mean.

    Attributes:
        values: leaves `[batches, ...]`.
        mean: leaves `[...]`.
    """

    values: Any
    mean: Any


class SABAState(NamedTuple):
    """The two inner iterates and the tables.

    Attributes:
        params: z, the inner variable.
        u: what solves H u = ∇_z f, like `params`.
        inner: table of (∇_z g, H u, J u) over the batches of `data.inner`.
        outer: table of (∇_z f, ∇_θ f) over the batches of `data.outer`.
        count: estimates so far.
    """

    params: Params
    u: Params
    inner: GradientTable
    outer: GradientTable
    count: Int[Array, ""]


@checked
def saba(
    problem: BilevelProblem,
    *,
    batch_size: int,
    outer_batch_size: int | None = None,
    step_size: Scalar = 0.1,
    system_step_size: Scalar | None = None,
    radius: Scalar | None = None,
    warm: bool = True,
) -> Estimator:
    """Moves the inner variable, the linear system and theta at once, with reduced variance.

    Args:
        problem: losses that are means over the rows of `data.inner` and `data.outer`; `data` must
            be a `core.Split` and the losses deterministic.
        batch_size: rows of a batch of `data.inner`, a divisor of its rows. Static.
        outer_batch_size: rows of a batch of `data.outer`; None: `batch_size`. Static.
        step_size: ρ of the inner variable, constant. Traced.
        system_step_size: ρ_u of the linear system; None: `step_size`. Traced.
        radius: u is projected onto the ball of this radius; None: it is not. Traced.
        warm: whether `init` fills the tables by one pass over the data; else they start from zero
            and the directions are biased until every batch was drawn. Static.

    Returns:
        An estimator whose state holds the tables.

    Raises:
        ValueError: for steps that are not positive, or batches that do not divide the rows.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    outer_size = batch_size if outer_batch_size is None else outer_batch_size
    check_settings(
        "saba",
        counts={"batch_size": batch_size, "outer_batch_size": outer_size},
        positive={"step_size": step_size, "system_step_size": system_step_size, "radius": radius},
    )
    rate = step_size if system_step_size is None else system_step_size

    def inner_values(params, theta, u, data, index, key):
        batch = data._replace(inner=take_batch(data.inner, index, batch_size))
        gradient, pullback = linearise(problem, params, theta, batch, key)
        return (gradient, *pullback(u))

    def outer_values(params, theta, data, index, key):
        batch = data._replace(outer=take_batch(data.outer, index, outer_size))
        return outer_gradients(problem, params, theta, batch, key)

    def init(theta, data, key):
        key_params, key_inner, key_outer = jax.random.split(key, 3)
        rows, columns = num_batches("saba", data, inner=batch_size, outer=outer_size)
        params, count = begin(problem, key_params)
        u = jax.tree.map(jnp.zeros_like, params)
        inner = _table(
            lambda index, key: inner_values(params, theta, u, data, index, key),
            rows,
            key_inner,
            warm,
        )
        outer = _table(
            lambda index, key: outer_values(params, theta, data, index, key)[1],
            columns,
            key_outer,
            warm,
        )
        return SABAState(params, u, inner, outer, count)

    def estimate(theta, state, data, key):
        key_row, key_inner, key_column, key_outer = jax.random.split(key, 4)
        rows, columns = num_batches("saba", data, inner=batch_size, outer=outer_size)
        row = jax.random.randint(key_row, (), 0, rows)
        column = jax.random.randint(key_column, (), 0, columns)
        inner = inner_values(state.params, theta, state.u, data, row, key_inner)
        loss, outer = outer_values(state.params, theta, data, column, key_outer)

        finite = tree.all_finite((inner, outer))
        (gradient, hessian, mixed), inner_table = _reduce(state.inner, row, inner, finite)
        (outer_params, outer_theta), outer_table = _reduce(state.outer, column, outer, finite)
        params = descend(state.params, step_size, gradient)
        u = project(descend(state.u, rate, optax.tree.sub(hessian, outer_params)), radius)
        finite &= tree.all_finite((params, u))
        new = SABAState(
            tree.where(finite, params, state.params),
            tree.where(finite, u, state.u),
            inner_table,
            outer_table,
            state.count + 1,
        )
        direction = optax.tree.sub(outer_theta, mixed)
        oracles = Oracles(1, 1, 1, 1)
        return report(theta, direction, loss, oracles, finite, inner_steps=1), new

    return checked_estimator("saba", init, estimate)


def _table(values, batches, key, warm) -> GradientTable:
    """One pass over the batches, or zeros of the same kind."""
    keys = jax.random.split(key, batches)
    key_data, key_impl = jax.random.key_data(keys), jax.random.key_impl(keys)

    def one(batch):
        index, key_data = batch
        return values(index, jax.random.wrap_key_data(key_data, impl=key_impl))

    arguments = (jnp.arange(batches), key_data)
    if warm:
        rows = jax.lax.map(one, arguments)
    else:
        shapes = jax.eval_shape(lambda x: jax.lax.map(one, x), arguments)
        rows = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return GradientTable(rows, jax.tree.map(lambda x: jnp.mean(x, axis=0), rows))


def _reduce(table: GradientTable, index, new, finite) -> tuple[Any, GradientTable]:
    """The direction with reduced variance, and the table with the new values in their row."""
    batches = jax.tree.leaves(table.values)[0].shape[0]
    old = jax.tree.map(lambda x: x[index], table.values)
    # Values that are not finite leave the table as it is; no select over all of its rows is needed.
    new = tree.where(finite, new, old)
    change = optax.tree.sub(new, old)
    mean = tree.cast_like(optax.tree.add_scale(table.mean, 1 / batches, change), table.mean)
    values = jax.tree.map(lambda x, row: x.at[index].set(row), table.values, new)
    return optax.tree.add(change, table.mean), GradientTable(values, mean)
