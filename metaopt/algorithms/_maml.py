"""Model-agnostic meta-learning (MAML): an initialisation that adapts in a few steps.

    φ₀ = θ,    φₖ₊₁ = φₖ − inner_opt(∇ L_support(φₖ)),    L(θ) = mean over tasks of L_query(φ_K)

Finn et al. 2017 (ICML), arXiv:1703.03400; `gradient="first_order"` is their first-order version
(§5.2). Unlike in `metaopt.core.adaptation`, which draws a new batch and measures the outer loss in
every step, a task has one support set for all its steps, and the query loss is taken once.
"""

from collections.abc import Callable

import optax

from metaopt.algorithms._learner import (
    MetaLearner,
    initial_params,
    inner_loop,
    query_estimator,
)
from metaopt.core import Params, TaskFamily, checked
from metaopt.unroll import Gradient, Loop, Remat


@checked
def adapt(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> Callable[..., Params]:
    """Makes the inner loop: a few steps on one support set.

    Args:
        family: the tasks; its `loss` is minimised.
        inner_opt: any optax optimizer.
        num_steps: steps K. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        `(theta, task_params, support, key) -> params`, where `support` is a batch of the family.

    Raises:
        ValueError: if `num_steps < 1` or a choice is unknown.
    """

    def loss(params, theta, task_params, support, key):
        del theta
        return family.loss(params, task_params, support, key)

    run = inner_loop(
        "adapt",
        loss,
        lambda theta: inner_opt,
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )
    return lambda theta, task_params, support, key: run(theta, task_params, support, key)[0]


@checked
def maml(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation, trained for the query loss after a few steps on the support set.

    Args:
        family: the tasks. `theta` has the structure of its `params`.
        inner_opt: any optax optimizer; `optax.sgd(0.01)` is the paper's on sinusoids.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there; "first_order" leaves out second derivatives. Static.
        loop: as there; on CPU, convolutions run faster in an "unrolled" loop. Static.

    Returns:
        A learner; `theta` is `family.init` of any task.

    Raises:
        ValueError: for counts below 1 or an unknown choice.
    """
    adapted = adapt(
        family, inner_opt, num_steps=num_steps, remat=remat, gradient=gradient, loop=loop
    )
    estimator = query_estimator(
        "maml", family, adapted, num_tasks=num_tasks, tasks_at_once=tasks_at_once, gradient=gradient
    )
    return MetaLearner(initial_params(family), adapted, estimator)
