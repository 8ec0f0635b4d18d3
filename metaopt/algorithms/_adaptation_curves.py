"""How well a start adapts, step by step: what settings of the adaptation are chosen on.

    φ₀ = θ,    φₖ₊₁ = φₖ - inner_opt(∇ L_support(φₖ)),    measured: L_query(φₖ), k = 0, ..., K

for the initial parameters that any learner found, with the settings of the inner optimizer traced.
Hendryx et al. 2019, arXiv:1912.06290, §4.3, choose the number of steps on such curves of validation
tasks; `metaopt.eval.tune_adaptation` does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt.algorithms._learner import inner_loop, sample_episode
from metaopt.core import TaskFamily, checked
from metaopt.estimators._shared import check_tasks, map_tasks


def _loss(loss: Float[Array, ""], aux: Any) -> Float[Array, ""]:
    del aux
    return loss


@checked
def adaptation_curves(
    family: TaskFamily,
    make_optimizer: Callable[..., optax.GradientTransformation],
    *,
    num_steps: int,
    num_tasks: int,
    tasks_at_once: int | None = None,
    measure: Callable[[Float[Array, ""], Any], Float[Array, ""]] = _loss,
) -> Callable[..., Float[Array, "num_tasks num_steps+1"]]:
    """Makes the query measure of tasks before adaptation and after each of its steps.

    Args:
        family: the tasks, whose `params` are what theta is.
        make_optimizer: `(**settings) -> optax optimizer`, such as `optax.sgd`; settings are traced.
        num_steps: steps K. Static.
        num_tasks: tasks. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        measure: `(loss, aux) -> scalar` of the query set, lower is better. Static.

    Returns:
        `(theta, data, key, **settings) -> curves`, with data as in `MetaLearner`. The same key
        draws the same episodes.

    Raises:
        ValueError: for counts below 1, or `tasks_at_once` that does not divide `num_tasks`.
    """
    check_tasks("adaptation_curves", num_tasks, tasks_at_once)

    def loss(params, theta, task_params, support, key):
        del theta
        return family.loss(params, task_params, support, key)

    def report(params, theta, task_params, query, key):
        del theta
        return measure(*family.loss(params, task_params, query, key))

    run = inner_loop(
        "adaptation_curves",
        loss,
        lambda start: make_optimizer(**start[1]),
        start=lambda start: start[0],
        report=report,
        num_steps=num_steps,
    )

    def curves(theta, data, key, **settings):
        def one_task(_, key):
            key_episode, key_start, key_adapt = jax.random.split(key, 3)
            task_params, support, query = sample_episode(family, data, key_episode)
            first = report(theta, (), task_params, query, key_start)
            _, later = run((theta, settings), task_params, support, key_adapt, query)
            return jnp.concatenate([first[None], later])

        return map_tasks(one_task, (), key, num_tasks=num_tasks, at_once=tasks_at_once)

    return curves
