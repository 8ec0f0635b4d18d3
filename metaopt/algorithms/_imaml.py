"""Implicit MAML (iMAML): adaptation that stays near θ, differentiated at its solution.

    φ*(θ) = argmin L_support(φ) + λ/2 ‖φ − θ‖²,    dL/dθ = (I + H/λ)⁻¹ ∇ L_query(φ*),
    H the Hessian of L_support at φ*

Rajeswaran et al. 2019 (NeurIPS), arXiv:1909.04630, Eqs. 3 and 6. The path to φ* does not matter, so
that memory does not grow with its length and any inner optimizer will do; but the formula is exact
at φ* alone, and `info.aux.stationarity`, the norm of the inner gradient there, says how far off φ
is. The linear system is solved by conjugate gradients, products with H alone. It has a meaning for
λ above the largest negative curvature of L_support only; where conjugate gradients meet negative
curvature, the task contributes zero and counts in `info.nonfinite`.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt import estimators, implicit
from metaopt.algorithms._learner import (
    MetaLearner,
    initial_params,
    inner_loop,
    sample_episode,
)
from metaopt.core import BilevelProblem, Scalar, TaskFamily, checked
from metaopt.estimators._shared import check_positive
from metaopt.implicit import LinearSolver
from metaopt.unroll import Loop


@checked
def imaml(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    penalty: Scalar = 2.0,
    solver: LinearSolver | None = None,
    num_steps: int = 16,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation that adaptation stays near, trained by implicit differentiation.

    Args:
        family: the tasks. `theta` has the structure of its `params`.
        inner_opt: any optax optimizer.
        penalty: λ, twice the factor of the squared distance to `theta`. Traced.
        solver: of the linear system; None: five steps of `implicit.cg`, as in the paper.
        num_steps: inner steps. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        loop: of `adapt`, as in `metaopt.unroll.unroll`; the estimator scans. Static.

    Returns:
        A learner; `theta` is `family.init` of any task. `info.aux` of an estimate is a
        `metaopt.estimators.ImplicitInfo`.

    Raises:
        ValueError: for counts below 1 or a `penalty` that is not positive.
    """
    check_positive("imaml", penalty=penalty)

    def loss(params, theta, task_params, support, key):
        value, aux = family.loss(params, task_params, support, key)
        squares = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), params, theta)
        distance = jax.tree.reduce(jnp.add, squares)
        return value + (0.5 * penalty * distance).astype(value.dtype), aux

    run = inner_loop("imaml", loss, lambda theta: inner_opt, num_steps=num_steps, loop=loop)

    # One key stands for a task in all of these: episode and noise are made of it again.
    def inner_loss(params, theta, data, key):
        key_episode, key_inner, _ = jax.random.split(key, 3)
        task_params, support, _ = sample_episode(family, data, key_episode)
        return loss(params, theta, task_params, support, key_inner)[0]

    def outer_loss(params, theta, data, key):
        del theta
        key_episode, _, key_outer = jax.random.split(key, 3)
        task_params, _, query = sample_episode(family, data, key_episode)
        return family.normalise(family.loss(params, task_params, query, key_outer)[0], task_params)

    init = initial_params(family)
    estimator = estimators.implicit(
        BilevelProblem(init, inner_loss, outer_loss),
        inner_opt=inner_opt,
        num_steps=num_steps,
        solver=implicit.cg(rtol=0.0, max_steps=5) if solver is None else solver,
        warm_start=False,
        start=lambda theta, data, key: theta,
        draws="task",
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
    )

    def adapted(theta, task_params, support, key):
        return run(theta, task_params, support, key)[0]

    return MetaLearner(init, adapted, estimator)
