"""What learners from few examples share: an episode, an inner loop, and the loss of the query set.

    φ = adapt(θ, support set),    L(θ) = mean over tasks of L_query(φ)

An algorithm is what it starts from, what it minimises and by which rule; everything else is here.
Finn et al. 2017 (ICML), arXiv:1703.03400.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt import estimators
from metaopt.core import (
    Batch,
    Data,
    Estimate,
    Estimator,
    Params,
    Split,
    StepInfo,
    System,
    TaskFamily,
    TaskParams,
    Theta,
    checked,
    loss_functions,
)
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._reach import check_reach
from metaopt.estimators._shared import check_tasks, map_tasks
from metaopt.unroll import Gradient, Loop, Remat, unroll


class MetaLearner(NamedTuple):
    """A learner from few examples, and how its meta-parameters are trained.

    Attributes:
        init: `(key) -> theta`.
        adapt: `(theta, task_params, support, key) -> params`, where `support` is a batch of the
            family and `params` is what its `loss` takes.
        estimator: the meta-gradient, an `Estimator` without state. Support sets are drawn from
            `data.inner` and query sets from `data.outer` if `data` is a `Split`, both from `data`
            otherwise.
    """

    init: Callable[[PRNGKeyArray], Theta]
    adapt: Callable[[Theta, TaskParams, Batch, PRNGKeyArray], Params]
    estimator: Estimator


class Episode(NamedTuple):
    """One task with what a learner adapts to and what it is judged by.

    Attributes:
        task_params: the task.
        support: a batch of the family.
        query: another.
    """

    task_params: TaskParams
    support: Batch
    query: Batch


class FewShotScores(NamedTuple):
    """What adapted learners reach on query sets.

    Attributes:
        loss: the query loss of every task, not normalised.
        aux: what the family's loss reports, the task axis first.
    """

    loss: Float[Array, " num_tasks"]
    aux: Any


def sample_episode(family: TaskFamily, data: Data, key: PRNGKeyArray) -> Episode:
    """Draws a task, its support set from `data.inner` and its query set from `data.outer`."""
    key_task, key_support, key_query = jax.random.split(key, 3)
    pools = data if isinstance(data, Split) else Split(data, data)
    task_params = family.sample(key_task)
    support = family.batch(pools.inner, task_params, key_support)
    return Episode(task_params, support, family.batch(pools.outer, task_params, key_query))


def initial_params(family: TaskFamily) -> Callable[[PRNGKeyArray], Params]:
    """`(key) -> params` of a family whose initial parameters do not depend on the task."""

    def init(key):
        key_task, key_params = jax.random.split(key)
        return family.init(family.sample(key_task), key_params)

    return init


def inner_loop(
    name: str,
    loss: Callable[..., tuple[Float[Array, ""], Any]],
    optimizer: Callable[[Theta], optax.GradientTransformation],
    *,
    start: Callable[[Theta], Params] = lambda theta: theta,
    report: Callable[..., Float[Array, ""]] | None = None,
    num_steps: int,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> Callable[..., tuple[Params, Float[Array, " num_steps"]]]:
    """Makes `(theta, task_params, support, key, query=()) -> (params, reported)`.

    Args:
        name: the function on whose behalf errors speak.
        loss: `(params, theta, task_params, support, key) -> (scalar, aux)`, minimised.
        optimizer: `(theta) -> optax.GradientTransformation`.
        start: `(theta) -> params`.
        report: `(params, theta, task_params, query, key) -> scalar`, taken after every step; None:
            the inner loss before it.
        num_steps: steps K. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.
    """

    def opt(theta):
        return optax.with_extra_args_support(optimizer(theta))

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        params, opt_state = state
        task_params, support, query = data
        (value, _), grads = value_and_grad(loss, has_aux=True)(
            params, theta, task_params, support, key
        )

        def inner_loss(params):
            return loss(params, theta, task_params, support, jax.random.clone(key))[0]

        extra = loss_functions(inner_loss, value, grads, value_and_grad=value_and_grad)
        updates, opt_state = opt(theta).update(grads, opt_state, params, **extra)
        params = optax.apply_updates(params, updates)
        if report is not None:
            value = report(params, theta, task_params, query, jax.random.clone(key))
        return (params, opt_state), StepInfo(value, jnp.array(False))

    def init(theta, data, key, *, num_steps=None):
        del data, key, num_steps
        params = start(theta)
        return params, opt(theta).init(params)

    system = System(init, step)
    run = unroll(system, num_steps=num_steps, remat=remat, gradient=gradient, loop=loop, name=name)

    def adapted(theta, task_params, support, key, query=()):
        data = (task_params, support, query)
        (params, _), infos = run(theta, init(theta, data, key), data, key)
        return params, infos.loss

    return adapted


def query_estimator(
    name: str,
    family: TaskFamily,
    adapt: Callable[..., Params],
    *,
    num_tasks: int,
    tasks_at_once: int | None = None,
    gradient: Gradient = "reverse",
) -> Estimator:
    """The gradient of the normalised query loss after adaptation, averaged over tasks."""

    def episode_loss(theta, episode, key):
        key_adapt, key_loss = jax.random.split(key)
        params = adapt(theta, episode.task_params, episode.support, key_adapt)
        loss, _ = family.loss(params, episode.task_params, episode.query, key_loss)
        return family.normalise(loss, episode.task_params)

    return episode_estimator(
        name,
        family,
        episode_loss,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )


def episode_estimator(
    name: str,
    family: TaskFamily,
    episode_loss: Callable[[Theta, Episode, PRNGKeyArray], Float[Array, ""]],
    *,
    num_tasks: int,
    tasks_at_once: int | None = None,
    gradient: Gradient = "reverse",
) -> Estimator:
    """The gradient of any loss of an episode; a first-order one must reach all of theta."""
    check_tasks(name, num_tasks, tasks_at_once)

    def meta_loss(theta, data, key):
        key_episode, key_loss = jax.random.split(key)
        return episode_loss(theta, sample_episode(family, data, key_episode), key_loss)

    estimator = estimators.backprop(meta_loss, num_tasks=num_tasks, tasks_at_once=tasks_at_once)

    def estimate(theta, state, data, key) -> tuple[Estimate, Any]:
        if gradient == "first_order":
            check_reach(name, meta_loss, theta, data, jax.random.clone(key))
        return estimator.estimate(theta, state, data, key)

    # Here again, because first-order gradients look at theta before the estimator does.
    return checked_estimator(name, estimator.init, estimate)


@checked
def few_shot_scores(
    family: TaskFamily,
    adapt: Callable[[Theta, TaskParams, Batch, PRNGKeyArray], Params],
    *,
    num_tasks: int,
    tasks_at_once: int | None = None,
) -> Callable[[Theta, Data, PRNGKeyArray], FewShotScores]:
    """Makes the test of a learner: it adapts to fresh tasks and is judged on their query sets.

    Args:
        family: the tasks; a family like the training one may have other shots or other numbers of
            query examples.
        adapt: as in `MetaLearner`, often with more steps than in training. Static.
        num_tasks: tasks. Static.
        tasks_at_once: how many are vectorised at a time, a divisor of `num_tasks`. Static.

    Returns:
        `(theta, data, key) -> FewShotScores`, with `data` as in `MetaLearner`. The same key draws
        the same episodes for every learner on the same family.

    Raises:
        ValueError: for counts below 1, or `tasks_at_once` that does not divide `num_tasks`.
    """
    check_tasks("few_shot_scores", num_tasks, tasks_at_once)

    def scores(theta, data, key):
        def one_task(_, key):
            key_episode, key_adapt, key_loss = jax.random.split(key, 3)
            task_params, support, query = sample_episode(family, data, key_episode)
            params = adapt(theta, task_params, support, key_adapt)
            return FewShotScores(*family.loss(params, task_params, query, key_loss))

        return map_tasks(one_task, (), key, num_tasks=num_tasks, at_once=tasks_at_once)

    return scores
