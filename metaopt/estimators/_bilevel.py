"""What the estimators of bilevel problems share.

For min_θ h(θ) = f(z*(θ), θ) with z*(θ) = argmin_z g(z, θ), in the u-form that all of them follow,

    ∇h = ∇_θ f − J u,    H u = ∇_z f,    H = ∂²g/∂z²,  J = ∂²g/∂θ∂z,    all at z = z*(θ)

`params` is z and `theta` is θ. A minibatch is a key: the same key gives the same batch, at whatever
point. An estimator moves z, and its auxiliary variables, and returns a direction for θ: the step in
θ and its schedule belong to the caller's outer optimizer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metaopt import tree
from metaopt.core import (
    BilevelProblem,
    Estimate,
    EstimateInfo,
    Oracles,
    Params,
    Scalar,
    Split,
)
from metaopt.estimators._shared import check_count, check_positive

Data = Any
Theta = Any
Count = int | Int[Array, ""]


# Points, steps and keys -----------------------------------------------------------------------


def begin(problem: BilevelProblem, key: PRNGKeyArray) -> tuple:
    """Initial `params` and count."""
    return strong(problem.init(key)), jnp.zeros((), jnp.int32)


def strong(values: Any) -> Any:
    """The same numbers without weak types, which a carried state would lose on its way."""
    return tree.cast_like(values, values)


def decayed(value: Scalar, count: Int[Array, ""], exponent: Scalar) -> Float[Array, ""]:
    """value / (count + 1)^exponent."""
    return value * (count + 1).astype(float) ** -jnp.asarray(exponent, float)


def descend(point: Any, step: Scalar, direction: Any) -> Any:
    """point − step · direction, in the dtypes of `point`."""
    return tree.cast_like(optax.tree.add_scale(point, -step, direction), point)


def project(vector: Any, radius: Scalar | None) -> Any:
    """The nearest point of the ball of that radius; None leaves the vector."""
    if radius is None:
        return vector
    norm = optax.tree.norm(vector)
    shrink = jnp.minimum(1, radius / jnp.where(norm > 0, norm, 1))
    return tree.cast_like(optax.tree.scale(shrink, vector), vector)


def replay(key: PRNGKeyArray) -> Callable[[Count], PRNGKeyArray]:
    """`at(index)`: the key of that batch, the same at every call, also from inside a loop."""
    key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)
    return lambda index: jax.random.fold_in(
        jax.random.wrap_key_data(key_data, impl=key_impl), index
    )


# Oracles --------------------------------------------------------------------------------------


def outer_gradients(
    problem: BilevelProblem, params: Params, theta: Theta, data: Data, key: PRNGKeyArray
) -> tuple[Float[Array, ""], tuple[Params, Theta]]:
    """f and (∇_z f, ∇_θ f) on one batch."""
    return jax.value_and_grad(problem.outer_loss, argnums=(0, 1))(params, theta, data, key)


def linearise(
    problem: BilevelProblem, params: Params, theta: Theta, data: Data, key: PRNGKeyArray
) -> tuple[Params, Callable[[Params], tuple[Params, Theta]]]:
    """∇_z g on one batch and the map u -> (H u, J u), both from one linearisation."""

    def inner_gradient(params, theta):
        return jax.grad(problem.inner_loss)(params, theta, data, key)

    return jax.vjp(inner_gradient, params, theta)


def hessian_product(
    problem: BilevelProblem,
    params: Params,
    theta: Theta,
    vector: Params,
    data: Data,
    key: PRNGKeyArray,
) -> Params:
    """H · vector on one batch, forward over reverse."""

    def inner_gradient(params):
        return jax.grad(problem.inner_loss)(params, theta, data, key)

    return jax.jvp(inner_gradient, (params,), (vector,))[1]


def finite_difference(
    problem: BilevelProblem,
    params: Params,
    theta: Theta,
    vector: Params,
    data: Data,
    key: PRNGKeyArray,
    *,
    distance: Scalar,
) -> Theta:
    """J · vector from two gradients in θ, at `distance` from `params` to either side.

    No second derivative of the loss is taken; two gradients on one batch.
    """
    norm = optax.tree.norm(vector)
    eps = distance / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
    gradient = jax.grad(problem.inner_loss, argnums=1)
    above = gradient(descend(params, -eps, vector), theta, data, key)
    below = gradient(descend(params, eps, vector), theta, data, jax.random.clone(key))
    return optax.tree.scale(1 / (2 * eps), optax.tree.sub(above, below))


def inner_descent(
    problem: BilevelProblem,
    params: Params,
    theta: Theta,
    data: Data,
    key: PRNGKeyArray,
    *,
    step_size: Scalar,
    num_steps: int,
) -> Params:
    """z ← z − step_size · ∇_z g, `num_steps` times, each on a fresh batch."""
    at = replay(key)

    def one(params, index):
        gradient = jax.grad(problem.inner_loss)(params, theta, data, at(index))
        return descend(params, step_size, gradient), None

    return jax.lax.scan(one, params, jnp.arange(num_steps))[0]


def optimise(
    problem: BilevelProblem,
    opt: optax.GradientTransformationExtraArgs,
    params: Params,
    theta: Theta,
    opt_state: Any,
    data: Data,
    key: PRNGKeyArray,
    *,
    num_steps: int,
) -> tuple[Params, Any]:
    """`num_steps` steps of an optax optimizer on g, each on a fresh batch."""
    at = replay(key)

    def one(carry, index):
        params, opt_state = carry
        loss, gradient = jax.value_and_grad(problem.inner_loss)(params, theta, data, at(index))
        updates, opt_state = opt.update(gradient, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(one, (params, opt_state), jnp.arange(num_steps))[0]


def value_gap(
    problem: BilevelProblem,
    params: Params,
    theta: Theta,
    solution: Params,
    data: Data,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], tuple[Params, Theta]]:
    """q = g(params, θ) − g(solution, θ) on one batch, and (∇_z q, ∇_θ q) with `solution` constant.

    Two inner gradients. Where `solution` minimises g its own dependence on θ adds nothing
    (Danskin).
    """

    def gap(params, theta):
        value = problem.inner_loss(params, theta, data, key)
        return value - problem.inner_loss(solution, theta, data, jax.random.clone(key))

    return jax.value_and_grad(gap, argnums=(0, 1))(params, theta)


# Settings ---------------------------------------------------------------------------------------


def check_fraction(name: str, **values: Scalar) -> None:
    """Raises ValueError unless every value is between 0 and 1; tracers pass."""
    for argument, value in values.items():
        if isinstance(value, jax.core.Tracer):
            continue
        # In NumPy: inside a traced function even a comparison of concrete arrays would be traced.
        if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
            raise ValueError(f"{name}: {argument} must be between 0 and 1, got {value}.")


def check_settings(
    name: str, *, counts: dict[str, int], positive: Mapping[str, Scalar | None]
) -> None:
    """Raises ValueError for counts below 1 and for steps that are not positive; None passes."""
    check_count(name, **counts)
    check_positive(name, **{k: v for k, v in positive.items() if v is not None})


# Batches of a finite sum ----------------------------------------------------------------------


def num_batches(name: str, data: Data, *, inner: int, outer: int) -> tuple[int, int]:
    """How many equal batches the rows of either pool make; raises if rows are left over."""
    if not isinstance(data, Split):
        raise ValueError(
            f"{name}: data is a {type(data).__name__}, but batches are of two pools; pass "
            "metaopt.core.Split(inner=..., outer=...)."
        )
    return _num_batches(name, data.inner, inner), _num_batches(name, data.outer, outer)


def _num_batches(name: str, pool: Data, batch_size: int) -> int:
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(pool)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"{name}: the leading axes of a pool are {sorted(sizes)}; pass arrays with an equal "
            "leading axis."
        )
    ((rows,),) = sizes
    if rows == 0 or rows % batch_size:
        divisor = max((d for d in range(1, batch_size + 1) if rows and rows % d == 0), default=1)
        raise ValueError(
            f"{name}: batch_size={batch_size} does not divide the {rows} rows of a pool; "
            f"try batch_size={divisor}."
        )
    return rows // batch_size


def full_batches(data: Data, batch_size: int | None) -> tuple[Count, Count]:
    """What a gradient on all data counts for, in batches: of `data.inner` and of `data.outer`."""
    if batch_size is None:
        return 1, 1
    inner, outer = (len(jax.tree.leaves(pool)[0]) for pool in (data.inner, data.outer))
    return -(-inner // batch_size), -(-outer // batch_size)


def take_batch(pool: Data, index: Count, batch_size: int) -> Data:
    """Rows index · batch_size up to the next batch."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, index * batch_size, batch_size), pool
    )


# Results --------------------------------------------------------------------------------------


def report(
    theta: Theta,
    direction: Theta,
    loss: Float[Array, ""],
    oracles: Oracles,
    finite: Bool[Array, ""],
    *,
    inner_steps: Count,
    aux: Any = (),
) -> Estimate:
    """The estimate in the dtypes of theta; a direction that is not `finite` becomes zero."""
    grad = tree.cast_like(direction, theta)
    zero = jnp.zeros((), jnp.float32)
    info = EstimateInfo(
        nonfinite=1 - finite.astype(jnp.float32),
        frozen=zero,
        spread=zero,
        inner_steps=jnp.asarray(inner_steps, jnp.int32),
        oracles=Oracles(*(jnp.asarray(x, jnp.int32) for x in oracles)),
        aux=aux,
    )
    return Estimate(tree.where(finite, grad, jax.tree.map(jnp.zeros_like, grad)), loss, info)


def finish(
    theta: Theta,
    state: Any,
    new_state: Any,
    direction: Theta,
    loss: Float[Array, ""],
    oracles: Oracles,
    *,
    inner_steps: Count,
    aux: Any = (),
) -> tuple[Estimate, Any]:
    """The estimate, and the state of the next one.

    Where anything is not finite the direction is zero and the old state is kept, but for its count:
    schedules and resets go on, so that another batch, or the next reset, may recover.
    """
    finite = tree.all_finite((direction, new_state))
    kept = tree.where(finite, new_state, state)._replace(count=state.count + 1)
    estimate = report(theta, direction, loss, oracles, finite, inner_steps=inner_steps, aux=aux)
    return estimate, kept
