"""One-step meta-gradients (T1-T2): the inverse Hessian is the inner learning rate.

    params ← params − a ∇g,        grad = ∇_θ f − a (∂²g/∂θ∂params) ∇_params f

The implicit meta-gradient with a · I in place of the inverse, the Neumann series without its
products; at a stationary point the gradient through the last inner step. Biased, one mixed product
per estimate. Luketina et al. 2016, arXiv:1511.06727.
"""

from collections.abc import Callable

import optax

from metaopt.core import BilevelProblem, Estimator, Params, Scalar, checked
from metaopt.estimators._implicit import Draws, make_implicit
from metaopt.estimators._shared import check_positive
from metaopt.implicit import identity


@checked
def one_step(
    problem: BilevelProblem,
    *,
    step_size: Scalar,
    inner_opt: optax.GradientTransformation | None = None,
    num_steps: int = 1,
    warm_start: bool = True,
    start: Callable[..., Params] | None = None,
    draws: Draws = "step",
    num_tasks: int = 1,
    tasks_at_once: int | None = None,
) -> Estimator:
    """Differentiates one gradient step at the end of inner training. Biased.

    Args:
        problem: inner and outer loss.
        step_size: a, the inner learning rate. Traced.
        inner_opt: any optax optimizer; None: gradient descent with `step_size`.
        num_steps: inner steps per estimate. Static.
        warm_start: as in `implicit`. Static.
        start: as in `implicit`.
        draws: as in `implicit`. Static.
        num_tasks: tasks that are averaged. Static.
        tasks_at_once: as in `implicit`. Static.

    Returns:
        An estimator as of `implicit`.

    Raises:
        ValueError: for a non-positive `step_size` and bad counts.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_positive("one_step", step_size=step_size)
    return make_implicit(
        "one_step",
        problem,
        inner_opt=optax.sgd(step_size) if inner_opt is None else inner_opt,
        num_steps=num_steps,
        inner_solver=None,
        solver=identity(scale=step_size),
        structure="symmetric",
        warm_start=warm_start,
        start=start,
        draws=draws,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
    )
