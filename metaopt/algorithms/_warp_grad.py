"""Warped gradient descent (WarpGrad): layers that tasks do not adapt shape the steps of the others.

    φₖ₊₁ = φₖ − α ∇L_support(φₖ; w),    φ₀ = θ
    J(w) = mean over k < K of L_query(φₖ − α ∇L_support(φₖ; w); w),    φₖ constant

Every term is one step from a point that the trajectory passed. Nothing is differentiated through
the trajectory, of which only the points are kept. Flennerhag et al. 2020 (ICLR),
arXiv:1909.00025. The paper draws the points from a buffer and leaves open what trains θ. Here
all points of fresh trajectories are used, and θ follows J too, with ∂φₖ/∂θ taken as the identity
as in first-order MAML; with K = 1 the meta-gradient is thus MAML's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from metaopt.algorithms._learner import MetaLearner, episode_estimator, initial_params
from metaopt.core import Params, StepInfo, System, TaskFamily, checked
from metaopt.unroll import Gradient, unroll


class Warped(NamedTuple):
    """Parameters of a network with warps.

    Attributes:
        params: what tasks adapt.
        warp: what they do not.
    """

    params: Params
    warp: PyTree


@checked
def warp_grad(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    gradient: Gradient = "reverse",
) -> MetaLearner:
    """Warps trained for the step they shape at every point of the trajectory.

    Args:
        family: the tasks, with `params` a `Warped`: from `linear_warps`, or any network of yours
            whose `init` returns one and whose `loss` takes one; warps may be nonlinear layers.
        inner_opt: any optax optimizer; its state is constant at a point, as the parameters are.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        gradient: as in `metaopt.unroll.unroll`, for the one step of every term; "first_order" is
            the paper's approximation. Static.

    Returns:
        A learner with `theta` a `Warped`, of which `adapt` moves `params` only; the meta-loss is
        the mean over the trajectory of the query loss after each step.

    Raises:
        ValueError: for counts below 1 or an unknown choice; when traced, if the family's `params`
            are no `Warped`.
    """
    if num_steps < 1:
        raise ValueError(f"warp_grad: num_steps must be at least 1, got {num_steps}.")
    system = _warped_descent(family, optax.with_extra_args_support(inner_opt))
    one_step = unroll(system, num_steps=1, gradient=gradient, name="warp_grad")

    def trajectory(theta, data, key):
        """Final state, and the states before all steps, the step axis first."""
        key_of = _numbered(key)

        def step(state, index):
            return one_step(theta, state, data, key_of(index))[0], state

        return jax.lax.scan(step, system.init(theta, data, key), jnp.arange(num_steps))

    def adapt(theta, task_params, support, key):
        (params, _), _ = trajectory(theta, (task_params, support), key)
        return Warped(params, theta.warp)

    def episode_loss(theta, episode, key):
        task_params, support, query = episode
        key_path, key_query = jax.random.split(key)
        data = (task_params, support)
        _, states = trajectory(jax.lax.stop_gradient(theta), data, key_path)
        # Every term has the randomness of the step that it takes again.
        path_key_of, query_key_of = _numbered(key_path), _numbered(key_query)

        # Recomputed in the backward pass: what is kept of a term is its point.
        @jax.checkpoint
        def term(theta, state, index):
            params, opt_state = state
            start = (jax.tree.map(_with_derivative_of, params, theta.params), opt_state)
            (params, _), _ = one_step(theta, start, data, path_key_of(index))
            warped, key = Warped(params, theta.warp), query_key_of(index)
            loss, _ = family.loss(warped, task_params, query, key)
            return family.normalise(loss, task_params)

        points = (states, jnp.arange(num_steps))
        return jax.lax.map(lambda point: term(theta, *point), points).mean()

    estimator = episode_estimator(
        "warp_grad",
        family,
        episode_loss,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(initial_params(family), adapt, estimator)


def _warped_descent(family: TaskFamily, inner_opt: Any) -> System:
    """Adaptation of `params` with `theta.warp` in place."""

    def init(theta, data, key, *, num_steps=None):
        del data, key, num_steps
        if not isinstance(theta, Warped):
            raise ValueError(
                f"warp_grad: theta is a {type(theta).__name__}; give the family params of type "
                "metaopt.algorithms.Warped, or pass metaopt.algorithms.linear_warps(family)."
            )
        return theta.params, inner_opt.init(theta.params)

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        params, opt_state = state
        task_params, support = data

        def loss(params):
            return family.loss(Warped(params, theta.warp), task_params, support, key)

        (value, _), grads = value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = inner_opt.update(grads, opt_state, params, value=value)
        return (optax.apply_updates(params, updates), opt_state), StepInfo(value, jnp.array(False))

    return System(init, step)


def _numbered(key: PRNGKeyArray) -> Callable[[Int[Array, ""]], PRNGKeyArray]:
    """`(index) -> key`; wrapped anew, since loops over one key are meant to share its draws."""
    key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)
    return lambda index: jax.random.fold_in(
        jax.random.wrap_key_data(key_data, impl=key_impl), index
    )


def _with_derivative_of(value, x):
    """The value, exactly, with the derivative of x."""
    return value + (x - jax.lax.stop_gradient(x))
