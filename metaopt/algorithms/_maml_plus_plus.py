"""MAML++: rates for every tensor and step, and a loss after every step that fades to the last.

    φₖ₊₁ = φₖ − exp(ρ[tensor, k]) ∇ L_support(φₖ, sₖ),    L(θ) = Σₖ wₖ(t) L_query(φₖ, sₖ),  k = 1..K
    wₖ(t) = max(1 − t, 0.03) / K for k < K,    w_K = 1 − the others,    t from 0 to 1;  then w_K = 1

s is what a step has for itself and no task adapts: the scale, shift and statistics of batch
normalisation, for those who ask for it. Antoniou et al. 2019 (ICLR), arXiv:1810.09502, §4; the
lower bound 0.03 / K and the rates per tensor (the paper says per layer) are those of its public
code. Differs from the paper: rates are learned as logarithms ρ, see `metaopt.algorithms.meta_sgd`;
s₀, ..., s_K belong to φ₀, ..., φ_K, where the public code has K of them and judges φₖ₊₁ with sₖ.
The annealed outer rate is the outer optimizer's. First-order gradients at first and second-order
ones later are two learners that differ in `gradient=`: theta and state pass from one to the other
as they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt import tree
from metaopt.algorithms._learner import (
    MetaLearner,
    episode_estimator,
    initial_params,
    inner_loop,
)
from metaopt.core import Estimator, Params, Scalar, TaskFamily, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import check_positive
from metaopt.unroll import Gradient, Loop, Remat

# Share of its first weight that an early loss keeps until the fading ends.
FLOOR = 0.03


class MAMLPlusPlusTheta(NamedTuple):
    """What MAML++ learns.

    Attributes:
        params: initial parameters; a leaf with values per step has them in front, s₀ to s_K.
        log_rates: natural logarithms of learning rates: for each other leaf of `params` one per
            step, and `optax.MaskedNode` for those. A learner with more steps goes on with the last
            ones, of both.
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
    per_step: Callable[[Params], PyTree[bool]] | None = None,
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
        per_step: `(params) -> ` a tree of Python bools like `params` or a prefix of it, True for
            leaves that do not adapt and have a value for every step, such as `batch_norm_leaves`.
            None: all leaves adapt. Static.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there; "first_order" leaves s₀, which no query loss sees, where it is, and
            after the fading all but s_K. Static.
        loop: as there. Static.

    Returns:
        A learner whose `theta` is a `MAMLPlusPlusTheta` and whose estimator has a
        `MAMLPlusPlusState`; `adapt` returns `params` of the family, with s_K in them.

    Raises:
        ValueError: for counts below 1, a `learning_rate` or `fading` that is not positive, or an
            unknown choice; when called, if `per_step` marks all leaves.
    """
    check_positive("maml_plus_plus", learning_rate=learning_rate, fading=fading)

    def init(key):
        params = initial_params(family)(key)
        mask = per_step_mask(per_step, params)

        def rates(has_steps, x):
            if has_steps:
                return optax.MaskedNode()
            return jnp.full(num_steps, jnp.log(learning_rate), x.dtype)

        def repeated(has_steps, x):
            return jnp.broadcast_to(x, (num_steps + 1, *jnp.shape(x))) if has_steps else x

        return MAMLPlusPlusTheta(
            jax.tree.map(repeated, mask, params), jax.tree.map(rates, mask, params)
        )

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
            lambda theta: descent(theta, per_step),
            start=lambda theta: first_step(theta, per_step),
            report=report,
            num_steps=num_steps,
            remat=remat,
            gradient=gradient,
            loop=loop,
        )

    silent = loop_with(None)

    def adapted(theta, task_params, support, key):
        return silent(theta, task_params, support, key)[0]

    estimator = _fading_estimator(
        family,
        loop_with(query_loss),
        fading,
        num_steps,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(init, adapted, estimator)


def _fading_estimator(family, reporting, fading, num_steps, **settings) -> Estimator:
    """The gradient of the weighted query losses, which counts its estimates."""

    def weighted(weights):
        def episode_loss(theta, episode, key):
            task_params, support, query = episode
            losses = reporting(theta, task_params, support, key, query)[1]
            return jnp.sum(weights.astype(losses.dtype) * losses)

        return episode_estimator("maml_plus_plus", family, episode_loss, **settings)

    weighted(np.ones(num_steps))  # Refuses bad counts before anything is computed.

    def begin(theta, data, key):
        del data, key
        return MAMLPlusPlusState(jnp.zeros((), jnp.int32))

    def estimate(theta, state, data, key):
        weights = step_weights(state.num_estimates / fading, num_steps)
        found, _ = weighted(weights).estimate(theta, (), data, key)
        return found, MAMLPlusPlusState(state.num_estimates + 1)

    return checked_estimator("maml_plus_plus", begin, estimate)


def step_weights(progress: Scalar, num_steps: int) -> Float[Array, " num_steps"]:
    """Weights of the query losses after each step: uniform at progress 0, the last alone from 1."""
    early = jnp.where(progress < 1, jnp.maximum(1 - progress, FLOOR), 0.0) / num_steps
    is_last = np.arange(num_steps) == num_steps - 1
    return jnp.where(is_last, 1 - (num_steps - 1) * early, early)


def per_step_mask(
    per_step: Callable[[Params], PyTree[bool]] | None, params: Params
) -> PyTree[bool]:
    """Which leaves have a value for every step; raises if none is left to adapt."""
    mask = jax.tree.broadcast(False if per_step is None else per_step(params), params)
    if jax.tree.leaves(mask) and all(jax.tree.leaves(mask)):
        raise ValueError("maml_plus_plus: per_step= leaves nothing that adapts; mark fewer leaves.")
    return mask


def first_step(
    theta: MAMLPlusPlusTheta, per_step: Callable[[Params], PyTree[bool]] | None
) -> Params:
    """Parameters before the first step, as the family takes them."""
    mask = per_step_mask(per_step, theta.params)
    return jax.tree.map(lambda has_steps, x: x[0] if has_steps else x, mask, theta.params)


def descent(
    theta: MAMLPlusPlusTheta, per_step: Callable[[Params], PyTree[bool]] | None
) -> optax.GradientTransformation:
    """Gradient descent with rates by tensor and step; its state is the number of the step.

    Leaves with values per step go from the one of this step to the next one's, which is an update
    like any other, so that the inner loop needs not know of them.
    """
    mask = per_step_mask(per_step, theta.params)

    def update(updates, state, params=None):
        del params

        def at(rows, step):
            return rows[jnp.minimum(step, len(rows) - 1)]

        def move(has_steps, x, rates, grad):
            return (
                at(x, state + 1) - at(x, state) if has_steps else -jnp.exp(at(rates, state)) * grad
            )

        steps = jax.tree.map(move, mask, theta.params, theta.log_rates, updates)
        return tree.cast_like(steps, updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
