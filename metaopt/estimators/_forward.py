"""Forward-mode meta-gradients: whole trajectories, or online with carried sensitivities.

Along a tangent v of θ, one forward pass gives ∇L · v; the D unit vectors give the exact gradient in
memory that does not grow with the horizon T, at D times the cost of a trajectory: for few
meta-parameters. `num_directions=M` random directions with E[v vᵀ] = I give an unbiased estimate,

    g = 1/M · Σ_m (∇L · v_m) v_m        (Baydin et al. 2022, arXiv:2202.08587)

With `truncation=K` the sensitivities of the carried state are carried from window to window:

    S_{t+1} v = ∂_s f(s_t, θ) S_t v + ∂_θ f(s_t, θ) v,     ∇_θ ℓ_t v = ∂_s ℓ S_t v + ∂_θ ℓ v

(real-time recurrent learning, Williams and Zipser 1989, doi:10.1162/neco.1989.1.2.270; for
hyperparameters Franceschi et al. 2017, arXiv:1703.01785, §3.2). While θ stands still this is the
exact gradient of each window's loss, free of truncation bias; a θ that moves leaves sensitivities
of older values behind until the trajectory ends. Random directions are drawn once per trajectory.

A rule that defines its derivative for reverse mode only (`jax.custom_vjp`) cannot be pushed
forward; JAX says so.
"""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from metaopt import tree
from metaopt.core import Estimator, MetaLoss, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._columns import (
    Directions,
    basis,
    combine,
    map_columns,
    num_coordinates,
    random_directions,
)
from metaopt.estimators._shared import (
    as_episode_loss,
    average,
    check_count,
    check_tasks,
    map_tasks,
)
from metaopt.unroll import Episode, Horizon, Objective, as_horizon, episodes, sample_length


class ForwardState(NamedTuple):
    """What is carried between windows.

    Attributes:
        episode: where each task stands, leaves `[num_tasks, ...]`.
        tangents: derivatives of the episode's floating-point leaves along each column, a list of
            `[num_tasks, columns, ...]`.
        directions: the random directions, leaves `[num_tasks, columns, ...]` like `theta`; None
            for the coordinates.
    """

    episode: Episode
    tangents: list[Any]
    directions: PyTree | None


class _Columns(NamedTuple):
    """How tangent vectors are chosen and mapped over."""

    num_directions: int | None
    directions: Directions
    at_once: int | None

    def draw(self, theta, key):
        if self.num_directions is None:
            return basis(theta)
        return random_directions(
            theta, key, num_directions=self.num_directions, directions=self.directions
        )

    def gradient(self, slopes, columns):
        return combine(slopes, columns, 1.0 if self.num_directions is None else 1 / len(slopes))

    def count(self, theta):
        return num_coordinates(theta) if self.num_directions is None else self.num_directions


@checked
def forward(
    problem: System | MetaLoss,
    *,
    horizon: int | Horizon | None = None,
    truncation: int | None = None,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    num_directions: int | None = None,
    directions: Directions = "rademacher",
    columns_at_once: int | None = None,
    objective: Objective = "mean",
    stagger: bool = True,
) -> Estimator:
    """Differentiates in forward mode, whole trajectories or window by window.

    Args:
        problem: a System, or a differentiable `meta_loss(theta, data, key) -> scalar`.
        horizon: inner steps of a trajectory, for a System: an int or a `Horizon`, of which one
            length is drawn for all tasks; with `truncation`, inner steps until reset. Static.
        truncation: K, inner steps per estimate of the online form; None: whole trajectories.
            Static.
        num_tasks: tasks N that are averaged. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`. None:
            all. Static.
        num_directions: M, random directions per task; None: every coordinate of theta. Static.
        directions: "rademacher" (signs) or "normal". Static.
        columns_at_once: how many tangents are vectorised at a time; None: all. Static.
        objective: of a System's whole trajectory: "mean", "last" or "min". Static.
        stagger: whether tasks of the online form start at different phases. Static.

    Returns:
        An estimator; without state for whole trajectories, with the task axis first otherwise. A
        task whose gradient is not finite contributes zero.

    Raises:
        ValueError: for counts below 1, unknown `directions`, a System without a horizon, a
            function with one or with `truncation`, a horizon that is not a multiple of
            `truncation`, or an `objective` other than the mean of a window.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_tasks("forward", num_tasks, tasks_at_once)
    counts = {"num_directions": num_directions, "columns_at_once": columns_at_once}
    check_count("forward", **{k: v for k, v in counts.items() if v is not None})
    if directions not in get_args(Directions):
        raise ValueError(
            f"forward: directions={directions!r} is unknown; choose from {get_args(Directions)}."
        )
    columns = _Columns(num_directions, directions, columns_at_once)
    tasks = {"num_tasks": num_tasks, "at_once": tasks_at_once}
    if truncation is None:
        return _whole(problem, columns, tasks, horizon, objective)
    if not isinstance(problem, System):
        raise ValueError("forward: a meta-loss function has no windows; drop truncation.")
    if objective != "mean":
        raise ValueError(f"forward: windows have the objective 'mean', not {objective!r}.")
    if horizon is None:
        raise ValueError("forward: horizon=None, but a trajectory needs an end; give its steps.")
    run = episodes(problem, truncation=truncation, horizon=horizon, stagger=stagger, name="forward")
    return _online(run, columns, tasks, truncation)


def _whole(problem, columns, tasks, horizon, objective) -> Estimator:
    """Trajectories from start to end."""
    episode_loss = as_episode_loss("forward", problem, horizon=horizon, objective=objective)
    lengths = None if horizon is None else as_horizon(horizon, name="forward")

    def init(theta, data, key):
        del data, key
        return ()

    def one_task(theta, data, key, length):
        key_columns, key_loss = jax.random.split(key)
        vectors = columns.draw(theta, key_columns)
        again = _reusable(key_loss)

        def along(vector):
            loss, slope, info = jax.jvp(
                lambda theta: episode_loss(theta, data, again(), length),
                (theta,),
                (vector,),
                has_aux=True,
            )
            return slope, loss, info.frozen

        slopes, losses, frozen = map_columns(along, vectors, columns.at_once)
        return _guarded(columns.gradient(slopes, vectors), losses[0], frozen[0])

    def estimate(theta, state, data, key):
        key_length, key_tasks = jax.random.split(key)
        length = None if lengths is None else sample_length(lengths, key_length)
        outputs = map_tasks(
            lambda _, key: one_task(theta, data, key, length), (), key_tasks, **tasks
        )
        steps = 0 if length is None else tasks["num_tasks"] * length
        result = average(theta, *outputs, inner_steps=steps)
        return _count_products(result, columns.count(theta)), state

    return checked_estimator("forward", init, estimate)


def _online(run, columns, tasks, truncation) -> Estimator:
    """Windows, with the sensitivities of their first states."""

    def init(theta, data, key):
        def one_task(key):
            key_columns, key_start = jax.random.split(key)
            vectors, again = columns.draw(theta, key_columns), _reusable(key_start)

            def floats(theta):
                return _split(run.begin(theta, data, again()))[0]

            def along(vector):
                return jax.jvp(floats, (theta,), (vector,))[1]

            tangents = map_columns(along, vectors, columns.at_once)
            directions = None if columns.num_directions is None else vectors
            return ForwardState(run.begin(theta, data, again()), tangents, directions)

        return jax.vmap(one_task)(jax.random.split(key, tasks["num_tasks"]))

    def one_task(theta, state, data, key):
        key_columns, key_window = jax.random.split(key)
        vectors = columns.draw(theta, key_columns)
        if state.directions is not None:
            ended = state.episode.clock >= state.episode.length
            vectors = tree.where(ended, vectors, state.directions)
        floats, merge = _split(state.episode)
        again = _reusable(key_window)

        def window(theta, floats):
            episode, window = run.window(theta, merge(floats), data, again())
            return (jnp.mean(window.loss), _split(episode)[0]), (episode, window.frozen)

        def along(column):
            vector, tangents = column
            (loss, _), (slope, tangents), (episode, frozen) = jax.jvp(
                window, (theta, floats), (vector, tangents), has_aux=True
            )
            return (slope, tangents), (loss, episode, frozen)

        (slopes, tangents), others = map_columns(along, (vectors, state.tangents), columns.at_once)
        loss, episode, frozen = jax.tree.map(lambda x: x[0], others)
        outputs = _guarded(columns.gradient(slopes, vectors), loss, frozen)
        directions = None if state.directions is None else vectors
        return outputs, ForwardState(episode, tangents, directions)

    def estimate(theta, state, data, key):
        outputs, state = map_tasks(
            lambda state, key: one_task(theta, state, data, key), state, key, **tasks
        )
        result = average(theta, *outputs, inner_steps=tasks["num_tasks"] * truncation)
        return _count_products(result, columns.count(theta)), state

    return checked_estimator("forward", init, estimate)


def _split(episode):
    """The floating-point leaves, and a function that puts others of them in their places."""
    leaves, treedef = jax.tree.flatten(episode)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def merge(floats):
        floats = iter(floats)
        return treedef.unflatten(
            [next(floats) if f else x for f, x in zip(is_float, leaves, strict=True)]
        )

    return [x for f, x in zip(is_float, leaves, strict=True) if f], merge


def _reusable(key):
    """The same key for every column: as raw numbers, wrapped anew at each use."""
    key_data, key_impl = jax.random.key_data(key), jax.random.key_impl(key)
    return lambda: jax.random.wrap_key_data(key_data, impl=key_impl)


def _guarded(grad, loss, frozen):
    """A task's contribution, zero where it is not finite."""
    finite = tree.all_finite(grad)
    grad = tree.where(finite, grad, jax.tree.map(jnp.zeros_like, grad))
    return grad, loss, finite, frozen, jnp.zeros(())


def _count_products(estimate, num_columns):
    """One Hessian-vector and one mixed product per inner step and column."""
    info, products = estimate.info, num_columns * estimate.info.inner_steps
    oracles = info.oracles._replace(hessian_products=products, mixed_products=products)
    return estimate._replace(info=info._replace(oracles=oracles))
