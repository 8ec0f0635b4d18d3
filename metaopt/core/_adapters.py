"""Adapters: N problems and M estimators need N + M files.

    family + learned optimizer          -> System   (`training`)
    family + optimizer, theta = params  -> System   (`adaptation`: MAML and its kin)
    bilevel problem + optimizer         -> System   (`bilevel_training`)

A hand-written optimizer with learnable hyperparameters is a learned optimizer
(`metaopt.learned.hyperparameters`), so the first adapter serves it too.

Each `step` takes the keyword `value_and_grad=`, the transformation that the inner loss is
differentiated with: an unroll may put one there whose own derivative costs less memory.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from metaopt.core._checked import checked
from metaopt.core._contracts import (
    BilevelProblem,
    LearnedOptimizer,
    Params,
    Split,
    StepInfo,
    System,
    TaskFamily,
    TaskParams,
)
from metaopt.core._loss_functions import loss_functions

OuterLoss = Literal["train", "same_batch", "validation"]


class TrainingState(NamedTuple):
    """One task in training."""

    task_params: TaskParams
    params: Params
    opt_state: Any
    num_steps: Int[Array, ""] | None


class BilevelState(NamedTuple):
    """One inner problem in training."""

    params: Params
    opt_state: Any


@checked
def training(
    family: TaskFamily, learned: LearnedOptimizer, *, outer_loss: OuterLoss = "train"
) -> System:
    """The training of a task from `family` by a learned optimizer; `theta` is the optimizer's.

    Args:
        family: where tasks come from; every trajectory draws a new one.
        learned: the optimizer. Its `update` is given the training loss, `value=`, and the other
            extra arguments of `loss_functions`.
        outer_loss: what a step reports, normalised by the family. `"train"`: the loss whose
            gradient the step follows, so measured before the update; it costs nothing.
            `"same_batch"`: the loss after the update on the same batch. `"validation"`: the loss
            after the update on a fresh batch of `data.outer`; `data` must be a `Split`. Static.

    Returns:
        A system that never ends by itself (`done` is False): horizons belong to the estimators.

    Raises:
        ValueError: if `outer_loss` is unknown, or is `"validation"` and `data` is not a `Split`.
    """
    return _training(
        "training",
        family,
        lambda _, task_params, key: family.init(task_params, key),
        learned.optimizer,
        outer_loss,
    )


@checked
def adaptation(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    outer_loss: OuterLoss = "validation",
) -> System:
    """The training of a task from `theta`, the initial parameters, by a fixed optimizer.

    Args:
        family: where tasks come from. Its `init` is not used: `theta` takes its place.
        inner_opt: any optax optimizer.
        outer_loss: as in `training`. With `"validation"`, `data.inner` is the pool of the support
            sets and `data.outer` that of the query sets. Static.

    Returns:
        A system whose `theta` has the structure of the family's `params`.

    Raises:
        ValueError: as in `training`.
    """
    return _training(
        "adaptation",
        family,
        lambda theta, *_: theta,
        lambda theta, num_steps: inner_opt,
        outer_loss,
    )


def _training(name, family, init_params, make_optimizer, outer_loss) -> System:
    if outer_loss not in get_args(OuterLoss):
        raise ValueError(
            f"{name}: outer_loss={outer_loss!r} is unknown; choose from {get_args(OuterLoss)}."
        )
    if outer_loss == "validation":
        split: Callable = _require_split(name)
    else:
        split = lambda data: data if isinstance(data, Split) else Split(data, data)  # noqa: E731

    def optimizer(theta, num_steps):
        return optax.with_extra_args_support(make_optimizer(theta, num_steps=num_steps))

    def init(theta, data, key, *, num_steps=None):
        del data
        key_task, key_params = jax.random.split(key)
        task_params = family.sample(key_task)
        params = init_params(theta, task_params, key_params)
        opt_state = optimizer(theta, num_steps).init(params)
        return TrainingState(task_params, params, opt_state, num_steps)

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        data = split(data)
        key_batch, key_loss, key_outer_batch, key_outer_loss = jax.random.split(key, 4)
        task_params = state.task_params
        batch = family.batch(data.inner, task_params, key_batch)

        def inner_loss(params):
            return family.loss(params, task_params, batch, jax.random.clone(key_loss))[0]

        (loss, _), grads = value_and_grad(family.loss, has_aux=True)(
            state.params, task_params, batch, key_loss
        )
        extra = loss_functions(inner_loss, loss, grads, value_and_grad=value_and_grad)
        updates, opt_state = optimizer(theta, state.num_steps).update(
            grads, state.opt_state, state.params, **extra
        )
        params = optax.apply_updates(state.params, updates)

        if outer_loss == "same_batch":
            loss, _ = family.loss(params, task_params, batch, jax.random.clone(key_loss))
        elif outer_loss == "validation":
            batch = family.batch(data.outer, task_params, key_outer_batch)
            loss, _ = family.loss(params, task_params, batch, key_outer_loss)
        info = StepInfo(family.normalise(loss, task_params), jnp.array(False))
        return TrainingState(task_params, params, opt_state, state.num_steps), info

    return System(init, step)


def _require_split(name):
    def split(data):
        if not isinstance(data, Split):
            raise ValueError(
                f"{name}: outer_loss='validation' measures on a second pool, but data is a "
                f"{type(data).__name__}; pass metaopt.core.Split(inner=..., outer=...)."
            )
        return data

    return split


@checked
def bilevel_training(problem: BilevelProblem, inner_opt: optax.GradientTransformation) -> System:
    """The minimisation of a bilevel problem's inner loss; each step reports the outer loss.

    Args:
        problem: inner and outer loss.
        inner_opt: any optax optimizer.

    Returns:
        A system; the outer loss is taken after the update.
    """
    inner_opt = optax.with_extra_args_support(inner_opt)

    def init(theta, data, key, *, num_steps=None):
        del theta, data, num_steps
        params = problem.init(key)
        return BilevelState(params, inner_opt.init(params))

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        key_inner, key_outer = jax.random.split(key)
        loss, grads = value_and_grad(problem.inner_loss)(state.params, theta, data, key_inner)

        def inner_loss(params):
            return problem.inner_loss(params, theta, data, jax.random.clone(key_inner))

        extra = loss_functions(inner_loss, loss, grads, value_and_grad=value_and_grad)
        updates, opt_state = inner_opt.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        outer = problem.outer_loss(params, theta, data, key_outer)
        return BilevelState(params, opt_state), StepInfo(outer, jnp.array(False))

    return System(init, step)
