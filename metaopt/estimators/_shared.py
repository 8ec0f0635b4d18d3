"""What several estimators need: argument checks, antithetic perturbations, guarded averages."""

from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from metaopt import tree
from metaopt.core import Estimate, EstimateInfo, MetaLoss, Oracles, Scalar, System
from metaopt.unroll import (
    Gradient,
    Horizon,
    Loop,
    MetaLossInfo,
    Objective,
    Remat,
    meta_loss_with_info,
)


def check_positive(name: str, **values: Scalar) -> None:
    """Raises ValueError unless every value is a positive finite number; tracers pass."""
    for argument, value in values.items():
        if isinstance(value, jax.core.Tracer):
            continue
        if not np.all(np.isfinite(value)) or not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name}: {argument} must be positive and finite, got {value}.")


def check_count(name: str, **values: int) -> None:
    """Raises ValueError unless every value is an integer of at least 1."""
    for argument, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {argument} must be an integer of at least 1, got {value!r}.")


def check_theta(name: str, theta: PyTree) -> None:
    """Raises unless theta is a non-empty tree of floating-point arrays."""
    leaves = jax.tree.leaves_with_path(theta)
    if not leaves:
        raise ValueError(f"{name}: theta has no arrays, so there is nothing to differentiate.")
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name}: theta{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}; "
                "meta-gradients need floating-point leaves: cast it or close over it."
            )


def as_episode_loss(
    name: str,
    problem: System | MetaLoss,
    *,
    horizon: int | Horizon | None,
    objective: Objective = "mean",
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> Callable:
    """Whole-horizon problems in one form: `(theta, data, key, num_steps) -> (loss, frozen)`."""
    if isinstance(problem, System):
        if horizon is None:
            raise ValueError(f"{name}: a System needs horizon=, the inner steps of a trajectory.")
        function = meta_loss_with_info(
            problem,
            horizon=horizon,
            objective=objective,
            remat=remat,
            gradient=gradient,
            loop=loop,
            name=name,
        )
        return lambda theta, data, key, num_steps: function(theta, data, key, num_steps=num_steps)
    if horizon is not None:
        raise ValueError(
            f"{name}: a meta-loss function has its own horizon; drop horizon={horizon}."
        )
    if gradient not in ("auto", "reverse"):
        raise ValueError(
            f"{name}: a meta-loss function takes its inner gradients by itself; drop "
            f"gradient={gradient!r}."
        )
    return lambda theta, data, key, num_steps: (
        problem(theta, data, key),
        MetaLossInfo(jnp.array(False)),
    )


def check_tasks(name: str, num_tasks: int, tasks_at_once: int | None) -> None:
    """Raises ValueError unless both are counts and the second divides the first."""
    check_count(name, num_tasks=num_tasks)
    if tasks_at_once is None:
        return
    check_count(name, tasks_at_once=tasks_at_once)
    if num_tasks % tasks_at_once:
        divisor = max(d for d in range(1, tasks_at_once + 1) if num_tasks % d == 0)
        raise ValueError(
            f"{name}: tasks_at_once={tasks_at_once} does not divide num_tasks={num_tasks}; "
            f"try tasks_at_once={divisor}."
        )


def map_tasks(
    function: Callable, state: PyTree, key: PRNGKeyArray, *, num_tasks: int, at_once: int | None
) -> PyTree:
    """`function(state, key)` for every task: `at_once` of them vectorised, then the next ones.

    A group takes every (num_tasks / at_once)-th task, so that each device of a sharded task axis
    has its share of every group.
    """
    keys = _on_task_axis(jax.random.split(key, num_tasks))
    if at_once is None or at_once == num_tasks:
        return jax.vmap(function)(state, keys)
    # As raw numbers: moving axes of a batch of keys counts as using them.
    key_data, key_impl = jax.random.key_data(keys), jax.random.key_impl(keys)

    def one_group(group):
        state, key_data = group
        return jax.vmap(function)(state, jax.random.wrap_key_data(key_data, impl=key_impl))

    def split(x):
        return jnp.moveaxis(x.reshape(at_once, -1, *x.shape[1:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(num_tasks, *x.shape[2:])

    groups = jax.tree.map(split, (state, key_data))
    return jax.tree.map(join, jax.lax.map(one_group, groups))


def _on_task_axis(keys):
    """Keys of tasks, split over the axis "tasks" of the mesh in force, if there is one.

    Without a state whose tasks are on devices already, every device would do all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get("tasks") != jax.sharding.AxisType.Auto or len(keys) % mesh.shape["tasks"]:
        return keys
    data = jax.random.key_data(keys)
    data = jax.lax.with_sharding_constraint(data, jax.sharding.PartitionSpec("tasks"))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def perturbation(theta: PyTree, sigma: Scalar, key: PRNGKeyArray) -> PyTree:
    """eps ~ sigma · N(0, I) in the shapes and dtypes of theta."""
    return optax.tree.scale(sigma, tree.sample_normal(theta, key))


def antithetic(theta: PyTree, eps: PyTree) -> PyTree:
    """theta + eps and theta − eps, stacked on a new leading axis of two arms."""
    return jax.tree.map(lambda x, e: jnp.stack([x + e, x - e]).astype(x.dtype), theta, eps)


def finite_or_zero(difference: Float[Array, "..."]) -> tuple[Float[Array, "..."], Bool[Array, ""]]:
    """Zero in place of a difference that is not finite anywhere, and whether it was finite."""
    finite = jnp.all(jnp.isfinite(difference))
    return jnp.where(finite, difference, 0), finite


def average(
    theta: PyTree,
    grads: PyTree,
    losses: Float[Array, "tasks"],
    finite: Bool[Array, "tasks"],
    frozen: Bool[Array, "..."],
    spread: Float[Array, "tasks"],
    inner_steps: int | Float[Array, ""],
    second_order: bool = False,
    aux: PyTree = (),
) -> Estimate:
    """The estimate from contributions of tasks, in the dtypes of theta.

    An inner step is taken to evaluate one inner gradient, and where its reverse pass was taken
    (`second_order`) one Hessian-vector and one mixed product.

    Contributions that are not finite must be zero already; they count in the mean's denominator.
    Gradient, loss and spread are the same for every order of tasks and every sharing of devices.
    The loss is the mean over the tasks in which it is finite.
    """
    grad = tree.cast_like(jax.tree.map(tree.reproducible_mean, grads), theta)
    has_loss = jnp.isfinite(losses)
    share = jnp.mean(has_loss.astype(losses.dtype))
    loss = tree.reproducible_mean(jnp.where(has_loss, losses, 0)) / jnp.where(share > 0, share, 1)
    steps = jnp.asarray(inner_steps, jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    products = steps if second_order else zero
    info = EstimateInfo(
        nonfinite=1 - jnp.mean(finite.astype(jnp.float32)),
        frozen=jnp.mean(frozen.astype(jnp.float32)),
        spread=tree.reproducible_mean(jnp.atleast_1d(spread)).astype(jnp.float32),
        inner_steps=steps,
        oracles=Oracles(steps, zero, products, products),
        aux=aux,
    )
    return Estimate(grad, jnp.where(jnp.any(has_loss), loss, jnp.nan), info)
