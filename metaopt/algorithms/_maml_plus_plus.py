"""MAML++: rates for every tensor and step, and a loss after every step that fades to the last.

    φₖ₊₁ = φₖ − exp(ρ[tensor, k]) ∇ L_support(φₖ),    L(θ) = Σₖ wₖ(t) L_query(φₖ),  k = 1, ..., K
    wₖ(t) = max(1 − t, 0.03) / K for k < K,    w_K = 1 − the others,    t from 0 to 1;  then w_K = 1

Antoniou et al. 2019 (ICLR), arXiv:1810.09502, §4; the lower bound 0.03 / K and the rates per tensor
(the paper says per layer) are those of its public code. Differs from the paper: rates are learned
as logarithms ρ, see `metaopt.algorithms.meta_sgd`. Statistics of batch normalisation per step are
the family's affair, and the annealed outer rate is the outer optimizer's. First-order gradients at
first and second-order ones later are two learners that differ in `gradient=`: theta and state pass
from one to the other as they are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from metaopt import tree
from metaopt.algorithms._learner import (
    MetaLearner,
    episode_estimator,
    initial_params,
    inner_loop,
)
from metaopt.core import Params, Scalar, TaskFamily, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import check_positive
from metaopt.unroll import Gradient, Loop, Remat

# Share of its first weight that an early loss keeps until the fading ends.
FLOOR = 0.03


class MAMLPlusPlusTheta(NamedTuple):
    """What MAML++ learns.

    Attributes:
        params: initial parameters.
        log_rates: natural logarithms of learning rates: for each leaf of `params` one per step. A
            learner with more steps goes on with the last ones.
    """

    params: Params
    log_rates: Params


class MAMLPlusPlusState(NamedTuple):
    """How far the early losses have faded.

    Attributes:
        num_estimates: estimates so far; may be set.
    """

    num_estimates: Int[Array, ""]


@checked
def maml_plus_plus(
    family: TaskFamily,
    *,
    learning_rate: Scalar = 0.01,
    fading: Scalar = 1000,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation and rates per tensor and step, trained at first for every step's loss.

    Args:
        family: the tasks.
        learning_rate: where all rates start. Traced.
        fading: estimates until only the last step's loss counts, so t = estimates / fading.
            Traced.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner whose `theta` is a `MAMLPlusPlusTheta` and whose estimator has a
        `MAMLPlusPlusState`.

    Raises:
        ValueError: for counts below 1, a `learning_rate` or `fading` that is not positive, or an
            unknown choice.
    """
    check_positive("maml_plus_plus", learning_rate=learning_rate, fading=fading)
    init_params = initial_params(family)

    def init(key):
        params = init_params(key)
        rates = jax.tree.map(lambda x: jnp.full(num_steps, jnp.log(learning_rate), x.dtype), params)
        return MAMLPlusPlusTheta(params, rates)

    def loss(params, theta, task_params, support, key):
        del theta
        return family.loss(params, task_params, support, key)

    def query_loss(params, theta, task_params, query, key):
        del theta
        return family.normalise(family.loss(params, task_params, query, key)[0], task_params)

    def loop_with(report):
        return inner_loop(
            "maml_plus_plus",
            loss,
            lambda theta: _sgd(theta.log_rates),
            start=lambda theta: theta.params,
            report=report,
            num_steps=num_steps,
            remat=remat,
            gradient=gradient,
            loop=loop,
        )

    silent, reporting = loop_with(None), loop_with(query_loss)

    def weighted(weights):
        def episode_loss(theta, episode, key):
            task_params, support, query = episode
            losses = reporting(theta, task_params, support, key, query)[1]
            return jnp.sum(weights.astype(losses.dtype) * losses)

        return episode_estimator(
            "maml_plus_plus",
            family,
            episode_loss,
            num_tasks=num_tasks,
            tasks_at_once=tasks_at_once,
            gradient=gradient,
        )

    weighted(np.ones(num_steps))  # Refuses bad counts before anything is computed.

    def begin(theta, data, key):
        del data, key
        return MAMLPlusPlusState(jnp.zeros((), jnp.int32))

    def estimate(theta, state, data, key):
        weights = step_weights(state.num_estimates / fading, num_steps)
        found, _ = weighted(weights).estimate(theta, (), data, key)
        return found, MAMLPlusPlusState(state.num_estimates + 1)

    def adapted(theta, task_params, support, key):
        return silent(theta, task_params, support, key)[0]

    return MetaLearner(init, adapted, checked_estimator("maml_plus_plus", begin, estimate))


def step_weights(progress: Scalar, num_steps: int) -> Float[Array, " num_steps"]:
    """Weights of the query losses after each step: uniform at progress 0, the last alone from 1."""
    early = jnp.where(progress < 1, jnp.maximum(1 - progress, FLOOR), 0.0) / num_steps
    is_last = np.arange(num_steps) == num_steps - 1
    return jnp.where(is_last, 1 - (num_steps - 1) * early, early)


def _sgd(log_rates) -> optax.GradientTransformation:
    """Gradient descent with rates by tensor and step; its state is the number of the step."""

    def update(updates, state, params=None):
        del params
        steps = jax.tree.map(
            lambda r, g: -jnp.exp(r[jnp.minimum(state, len(r) - 1)]) * g, log_rates, updates
        )
        return tree.cast_like(steps, updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
