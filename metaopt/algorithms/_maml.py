"""Model-agnostic meta-learning (MAML): an initialisation that adapts in a few steps.

    φ₀ = θ,    φₖ₊₁ = φₖ − inner_opt(∇ L_support(φₖ)),    L(θ) = mean over tasks of L_query(φ_K)

Finn et al. 2017 (ICML), arXiv:1703.03400; `gradient="first_order"` is their first-order version
(§5.2). Unlike in `metaopt.core.adaptation`, which draws a new batch and measures the outer loss in
every step, a task has one support set for all its steps, and the query loss is taken once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metaopt import estimators
from metaopt.core import Estimator, Params, Split, StepInfo, System, TaskFamily
from metaopt.unroll import Gradient, Loop, Remat, unroll


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
    inner_opt = optax.with_extra_args_support(inner_opt)

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        params, opt_state = state
        task_params, support = data
        (loss, _), grads = value_and_grad(family.loss, has_aux=True)(
            params, task_params, support, key
        )
        updates, opt_state = inner_opt.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), StepInfo(loss, jnp.array(False))

    system = System(
        lambda theta, data, key, *, num_steps=None: (theta, inner_opt.init(theta)), step
    )
    run = unroll(
        system, num_steps=num_steps, remat=remat, gradient=gradient, loop=loop, name="adapt"
    )

    def adapted(theta, task_params, support, key):
        start = (theta, inner_opt.init(theta))
        (params, _), _ = run(theta, start, (task_params, support), key)
        return params

    return adapted


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
) -> Estimator:
    """The gradient of the query loss after adaptation, with respect to the initialisation.

    Args:
        family: the tasks. `theta` has the structure of its `params`, so `family.init` makes one.
        inner_opt: any optax optimizer; `optax.sgd(0.01)` is the paper's on sinusoids.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there; "first_order" leaves out second derivatives. Static.
        loop: as there; on CPU, convolutions run faster in an "unrolled" loop. Static.

    Returns:
        An estimator without state. Support sets are drawn from `data.inner` and query sets from
        `data.outer` if `data` is a `Split`, both from `data` otherwise.

    Raises:
        ValueError: for counts below 1 or an unknown choice.
    """
    adapted = adapt(
        family, inner_opt, num_steps=num_steps, remat=remat, gradient=gradient, loop=loop
    )

    def meta_loss(theta, data, key):
        keys = jax.random.split(key, 5)
        key_task, key_support, key_query, key_adapt, key_loss = keys
        pools = data if isinstance(data, Split) else Split(data, data)
        task_params = family.sample(key_task)
        support = family.batch(pools.inner, task_params, key_support)
        query = family.batch(pools.outer, task_params, key_query)
        params = adapted(theta, task_params, support, key_adapt)
        loss, _ = family.loss(params, task_params, query, key_loss)
        return family.normalise(loss, task_params)

    return estimators.backprop(meta_loss, num_tasks=num_tasks, tasks_at_once=tasks_at_once)
