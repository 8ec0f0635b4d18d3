"""Implicit meta-gradients: warm-started inner training and one linear solve.

    params ≈ argmin g(·, θ),    ∇²g u = ∇_params f,    grad = ∇_θ f − (∂²g/∂θ∂params) u

averaged over tasks. Memory does not depend on the number of inner steps, and how params were found
does not matter, only that they are stationary. With `cg` Pedregosa 2016, arXiv:1602.02355, and, for
a proximal inner loss that starts at θ, iMAML (Rajeswaran et al. 2019, arXiv:1909.04630); with
`neumann` Lorraine et al. 2020, arXiv:1911.02590; with `nystrom` Hataya and Yamada 2023,
arXiv:2302.09726. Warm starts of params and u: Arbel and Mairal 2022, arXiv:2111.14580.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt import tree
from metaopt.core import BilevelProblem, Estimator, Oracles, Params, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import (
    average,
    check_count,
    check_tasks,
    map_tasks,
)
from metaopt.implicit import LinearSolver, Status, Structure, cg, hypergradient, seeded

Draws = Literal["step", "task"]
InnerSolver = Callable[[Callable[[Params], Float[Array, ""]], Params], Params]


class ImplicitState(NamedTuple):
    """What is carried between estimates; every leaf has the task axis first.

    Attributes:
        params: where inner training stands.
        opt_state: the inner optimizer's.
        u: the last solution of the linear system.
    """

    params: Params
    opt_state: Any
    u: Params


class ImplicitInfo(NamedTuple):
    """Averages over tasks of what the hypergradients report.

    Attributes:
        residual: ‖∇²g u − ∇_params f‖ / ‖∇_params f‖.
        stationarity: ‖∇_params g‖ at the end of inner training.
        solver_steps: iterations of the linear solver.
        unsolved: fraction of tasks whose linear solve ended with a status other than OK.
    """

    residual: Float[Array, ""]
    stationarity: Float[Array, ""]
    solver_steps: Float[Array, ""]
    unsolved: Float[Array, ""]


@checked
def implicit(
    problem: BilevelProblem,
    *,
    inner_opt: optax.GradientTransformation | None = None,
    num_steps: int | None = None,
    inner_solver: InnerSolver | None = None,
    solver: LinearSolver | None = None,
    structure: Structure = "symmetric",
    warm_start: bool = True,
    start: Callable[..., Params] | None = None,
    draws: Draws = "step",
    num_tasks: int = 1,
    tasks_at_once: int | None = None,
) -> Estimator:
    """Differentiates the solution of the inner problem by the implicit function theorem.

    Args:
        problem: inner and outer loss.
        inner_opt: any optax optimizer, with `num_steps`.
        num_steps: inner steps per estimate. Static.
        inner_solver: instead of both, `(loss, params) -> params`, a black box that minimises
            `loss(params)`.
        solver: of the linear system; None: `implicit.cg()`. Randomised ones get a fresh key for
            each estimate and task.
        structure: of the inner Hessian, "symmetric" or "psd". Static.
        warm_start: whether params, optimizer state and u go on from one estimate to the next. False
            for problems whose task is drawn from the key. Static.
        start: `(theta, data, key) -> params` in place of `problem.init`. Its dependence on theta is
            not differentiated: a solution does not depend on where its solver started.
        draws: which keys the inner loss sees. "step": a new key in each inner step, and another
            one, frozen, in the hypergradient; the outer loss has its own. "task": one key per task
            and estimate for everything, so that it identifies the task. Static.
        num_tasks: tasks that are averaged. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`. None:
            all. Static.

    Returns:
        An estimator whose state has the task axis first. A task whose linear solve met negative
        curvature, broke down or is not finite contributes zero and counts in `info.nonfinite`;
        one that ran out of steps contributes what it has. A task whose params are not finite starts
        again. `info.aux` is an `ImplicitInfo`; `info.oracles` counts no work of an `inner_solver`.

    Raises:
        ValueError: unless exactly one of `inner_opt` with `num_steps` and `inner_solver` is given,
            and for bad counts.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    return make_implicit(
        "implicit",
        problem,
        inner_opt=inner_opt,
        num_steps=num_steps,
        inner_solver=inner_solver,
        solver=cg() if solver is None else solver,
        structure=structure,
        warm_start=warm_start,
        start=start,
        draws=draws,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
    )


def make_implicit(
    name: str,
    problem: BilevelProblem,
    *,
    inner_opt,
    num_steps,
    inner_solver,
    solver: LinearSolver,
    structure: Structure,
    warm_start: bool,
    start,
    draws: str,
    num_tasks: int,
    tasks_at_once: int | None,
) -> Estimator:
    """The estimator under the name of the one that shares it, for messages."""
    _check(name, inner_opt, num_steps, inner_solver, draws)
    check_tasks(name, num_tasks, tasks_at_once)
    inner_opt = optax.with_extra_args_support(optax.identity() if inner_opt is None else inner_opt)
    steps = 0 if num_steps is None else num_steps

    def begin(theta, data, key):
        params = problem.init(key) if start is None else start(theta, data, key)
        # As strong types: a weak one would be lost in training, which costs a second trace.
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), params)
        return ImplicitState(params, inner_opt.init(params), jax.tree.map(jnp.zeros_like, params))

    def init(theta, data, key):
        return jax.vmap(lambda key: begin(theta, data, key))(jax.random.split(key, num_tasks))

    def train(theta, state, data, key):
        if inner_solver is not None:
            fixed = as_bits(key)
            loss = lambda params: problem.inner_loss(params, theta, data, fixed())  # noqa: E731
            params = tree.cast_like(inner_solver(loss, state.params), state.params)
            return state._replace(params=params)
        key_of = keys_of_steps(key, draws)

        def step(carry, index):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(problem.inner_loss)(params, theta, data, key_of(index))
            updates, opt_state = inner_opt.update(grads, opt_state, params, value=loss)
            return (optax.apply_updates(params, updates), opt_state), None

        carry, _ = jax.lax.scan(step, (state.params, state.opt_state), jnp.arange(steps))
        return ImplicitState(*carry, state.u)

    def one_task(theta, state, data, key):
        keys = task_keys(key, draws)
        state = train(theta, state, data, keys.train)
        value, grad, report = hypergradient(
            lambda params, theta: problem.outer_loss(params, theta, data, keys.outer),
            lambda params, theta: jax.grad(problem.inner_loss)(params, theta, data, keys.inner),
            state.params,
            theta,
            solver=seeded(solver, keys.solver),
            start=state.u,
            structure=structure,
        )
        usable = (report.status <= int(Status.MAX_STEPS)) & tree.all_finite((grad, report.u))
        grad = tree.where(usable, grad, jax.tree.map(jnp.zeros_like, grad))
        u = tree.where(usable, report.u, jax.tree.map(jnp.zeros_like, report.u))
        return (grad, value, usable, report._replace(u=())), state._replace(u=u)

    def next_start(theta, state, data, key):
        """The state that the estimate begins with, fresh where there is nothing to go on from."""
        fresh = begin(theta, data, key)
        if not warm_start:
            return fresh
        return tree.where(tree.all_finite(state.params), state, fresh)

    def estimate(theta, state, data, key):
        def one(state, key):
            key_begin, key_task = jax.random.split(key)
            return one_task(theta, next_start(theta, state, data, key_begin), data, key_task)

        (grads, losses, usable, report), state = map_tasks(
            one, state, key, num_tasks=num_tasks, at_once=tasks_at_once
        )
        estimate = average(
            theta,
            grads,
            losses,
            usable,
            frozen=jnp.zeros(num_tasks, bool),
            spread=jnp.zeros(num_tasks),
            inner_steps=num_tasks * steps,
            aux=_summary(report),
        )
        oracles = Oracles(
            # One more gradient for the optimality condition itself.
            inner_gradients=jnp.asarray(num_tasks * (steps + 1), jnp.int32),
            outer_gradients=jnp.asarray(num_tasks, jnp.int32),
            hessian_products=jnp.sum(report.num_products),
            mixed_products=jnp.asarray(num_tasks, jnp.int32),
        )
        return estimate._replace(info=estimate.info._replace(oracles=oracles)), state

    return checked_estimator(name, init, estimate)


class TaskKeys(NamedTuple):
    """The keys of one task in one estimate."""

    train: Array
    inner: Array
    outer: Array
    solver: Array


def task_keys(key, draws: str) -> TaskKeys:
    """Separate keys, or with "task" the same one three times, which identifies the task."""
    if draws == "step":
        return TaskKeys(*jax.random.split(key, 4))
    key_task, key_solver = jax.random.split(key)
    make = as_bits(key_task)
    return TaskKeys(make(), make(), make(), key_solver)


def keys_of_steps(key, draws: str):
    """The key of an inner step as a function of its index."""
    make = as_bits(key)
    if draws == "task":
        return lambda index: make()
    return lambda index: jax.random.fold_in(make(), index)


def as_bits(key):
    """A key as a function that makes it anew: the same numbers are drawn again on purpose."""
    data, impl = jax.random.key_data(key), jax.random.key_impl(key)
    return lambda: jax.random.wrap_key_data(data, impl=impl)


def _summary(report) -> ImplicitInfo:
    def mean(x):
        return jnp.mean(x.astype(jnp.float32))

    return ImplicitInfo(
        residual=mean(report.residual),
        stationarity=mean(report.stationarity),
        solver_steps=mean(report.num_steps),
        unsolved=mean(report.status != int(Status.OK)),
    )


def _check(name, inner_opt, num_steps, inner_solver, draws) -> None:
    if inner_solver is not None and (inner_opt is not None or num_steps is not None):
        raise ValueError(
            f"{name}: inner_solver= replaces inner_opt= and num_steps=; drop one or the other."
        )
    if inner_solver is None:
        if inner_opt is None or num_steps is None:
            raise ValueError(f"{name}: give inner_opt= and num_steps=, or inner_solver=.")
        check_count(name, num_steps=num_steps)
    if draws not in get_args(Draws):
        raise ValueError(f"{name}: draws={draws!r} is unknown; choose from {get_args(Draws)}.")
