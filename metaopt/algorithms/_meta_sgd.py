"""Meta-SGD: the initialisation and a learning rate for every parameter.

    φₖ₊₁ = φₖ − exp(ρ) ∘ ∇ L_support(φₖ),    θ = (φ₀, ρ)

Li et al. 2017, arXiv:1707.09835, §3. Differs from the paper in what is learned of a rate α = exp(ρ)
and in its start. The paper learns α itself, so that entries may become negative; a typical outer
step of 1e-3 then is a tenth of a typical rate, and training diverges. All rates start equal here;
there they start at random.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt import tree
from metaopt.algorithms._learner import MetaLearner, initial_params, inner_loop, query_estimator
from metaopt.core import Params, Scalar, TaskFamily, checked
from metaopt.estimators._shared import check_positive
from metaopt.unroll import Gradient, Loop, Remat


class MetaSGDTheta(NamedTuple):
    """What Meta-SGD learns.

    Attributes:
        params: initial parameters.
        log_rates: natural logarithms of the learning rates, shaped like `params`.
    """

    params: Params
    log_rates: Params


@checked
def meta_sgd(
    family: TaskFamily,
    *,
    learning_rate: Scalar = 0.01,
    num_steps: int = 1,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation and the rate of every entry, trained for the query loss after few steps.

    Args:
        family: the tasks.
        learning_rate: where all rates start. Traced.
        num_steps: inner steps K; the paper takes one. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there; with "first_order" the rates, which act after the inner gradients, still
            have meta-gradients. Static.
        loop: as there. Static.

    Returns:
        A learner whose `theta` is a `MetaSGDTheta`.

    Raises:
        ValueError: for counts below 1, a `learning_rate` that is not positive, or an unknown
            choice.
    """
    check_positive("meta_sgd", learning_rate=learning_rate)
    init_params = initial_params(family)

    def init(key):
        params = init_params(key)
        rates = jax.tree.map(lambda x: jnp.full_like(x, jnp.log(learning_rate)), params)
        return MetaSGDTheta(params, rates)

    def optimizer(theta):
        def update(updates, state, params=None, **extra):
            del params, extra
            steps = jax.tree.map(lambda r, g: -jnp.exp(r) * g, theta.log_rates, updates)
            return tree.cast_like(steps, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    def loss(params, theta, task_params, support, key):
        del theta
        return family.loss(params, task_params, support, key)

    run = inner_loop(
        "meta_sgd",
        loss,
        optimizer,
        start=lambda theta: theta.params,
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )

    def adapted(theta, task_params, support, key):
        return run(theta, task_params, support, key)[0]

    estimator = query_estimator(
        "meta_sgd",
        family,
        adapted,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(init, adapted, estimator)
