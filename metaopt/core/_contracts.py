"""The contracts: NamedTuples of pure functions over pytrees.

`theta` is always the meta-parameters and `params` what a task trains. Arguments come in one
order everywhere: what is differentiated, what is carried, what is fed, the key; then settings,
by keyword. Nothing here holds an array: data and keys are arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

Theta = PyTree
Params = PyTree
TaskParams = PyTree
Data = PyTree
Batch = PyTree
Scalar = float | Float[Array, ""]
MetaLoss = Callable[..., Float[Array, ""]]


class Split(NamedTuple):
    """Two pools: what the inner loop trains on, and what the meta-loss is measured on."""

    inner: Data
    outer: Data


def keep_finite(loss: Float[Array, ""], task_params: TaskParams) -> Float[Array, ""]:
    """The default normaliser: the identity, with the largest finite number for NaN and inf."""
    del task_params
    return jnp.nan_to_num(loss, nan=jnp.finfo(loss.dtype).max)


class TaskFamily(NamedTuple):
    """A distribution over training problems.

    Attributes:
        sample: `(key) -> task_params`, a small pytree of arrays: what distinguishes the tasks.
        init: `(task_params, key) -> params`.
        batch: `(data, task_params, key) -> batch`, a minibatch from the device-resident pool
            `data`. Synthetic families take `data = ()`.
        loss: `(params, task_params, batch, key) -> (scalar, aux)`.
        normalise: `(loss, task_params) -> scalar`, finite for every input, NaN included. The
            meta-loss is the normalised loss; the inner optimizer never sees it.
    """

    sample: Callable[[PRNGKeyArray], TaskParams]
    init: Callable[[TaskParams, PRNGKeyArray], Params]
    batch: Callable[[Data, TaskParams, PRNGKeyArray], Batch]
    loss: Callable[[Params, TaskParams, Batch, PRNGKeyArray], tuple[Float[Array, ""], Any]]
    normalise: Callable[[Float[Array, ""], TaskParams], Float[Array, ""]] = keep_finite


class StepInfo(NamedTuple):
    """What one inner step reports.

    Attributes:
        loss: the step's meta-loss.
        done: whether a trajectory ended with this step, `loss` being its last one. The system
            starts the next trajectory by itself; a system without an end reports False.
    """

    loss: Float[Array, ""]
    done: Bool[Array, ""]


class System(NamedTuple):
    """Inner training as a dynamical system: what unrolled estimators see.

    Attributes:
        init: `(theta, data, key, *, num_steps=None) -> state`. `num_steps` is the planned number
            of steps of the trajectory (static or traced); a system may ignore it.
        step: `(theta, state, data, key) -> (state, StepInfo)`. It may take the keyword
            `value_and_grad=jax.value_and_grad`, with which it then differentiates its inner loss
            by its first argument (`has_aux=` is known, `argnums=` is not), so that an unroll can
            choose how a meta-gradient passes through the inner gradient.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, StepInfo]]


class BilevelProblem(NamedTuple):
    """Inner training as an optimality condition: what implicit and penalty estimators see.

    Attributes:
        init: `(key) -> params`.
        inner_loss: `(params, theta, data, key) -> scalar`, minimised over `params`.
        outer_loss: `(params, theta, data, key) -> scalar`, minimised over `theta`.
    """

    init: Callable[[PRNGKeyArray], Params]
    inner_loss: Callable[[Params, Theta, Data, PRNGKeyArray], Float[Array, ""]]
    outer_loss: Callable[[Params, Theta, Data, PRNGKeyArray], Float[Array, ""]]


class LearnedOptimizer(NamedTuple):
    """An optax transformation with meta-parameters.

    Attributes:
        init: `(key) -> theta`.
        optimizer: `(theta, *, num_steps=None) -> optax.GradientTransformationExtraArgs`, complete:
            its updates are added to the parameters. `update` is given `value=`, the inner loss, and
            in a `training` the other arguments of `loss_functions`.
            `num_steps` may be traced.
    """

    init: Callable[[PRNGKeyArray], Theta]
    optimizer: Callable[..., optax.GradientTransformationExtraArgs]


class Oracles(NamedTuple):
    """What an estimate cost: evaluations of the problem's derivatives, over all tasks.

    A second-order reverse pass counts one Hessian-vector and one mixed product per inner step.

    Attributes:
        inner_gradients: gradients of the inner loss.
        outer_gradients: gradients of the outer loss.
        hessian_products: products of the inner loss's Hessian with a vector.
        mixed_products: products of its mixed second derivative with a vector.
    """

    inner_gradients: int | Int[Array, ""] = 0
    outer_gradients: int | Int[Array, ""] = 0
    hessian_products: int | Int[Array, ""] = 0
    mixed_products: int | Int[Array, ""] = 0


class EstimateInfo(NamedTuple):
    """What every estimator reports besides the gradient.

    Attributes:
        nonfinite: fraction of tasks whose contribution was not finite and counted as zero.
        frozen: fraction of tasks (antithetic arms count one by one) frozen after divergence.
        spread: mean absolute difference between antithetic losses; 0 without antithetic arms.
        inner_steps: inner steps taken for this estimate, over all tasks and arms.
        oracles: see `Oracles`.
        aux: what only this estimator reports, such as the residual of a linear solve.
    """

    nonfinite: Float[Array, ""]
    frozen: Float[Array, ""]
    spread: Float[Array, ""]
    inner_steps: Int[Array, ""]
    oracles: Oracles = Oracles()
    aux: Any = ()


class Estimate(NamedTuple):
    """A meta-gradient.

    Attributes:
        grad: structure, shapes and dtypes of `theta`.
        loss: the meta-loss it belongs to, averaged over tasks.
        info: see `EstimateInfo`.
    """

    grad: Theta
    loss: Float[Array, ""]
    info: EstimateInfo


class Estimator(NamedTuple):
    """A meta-gradient estimator, biased or not, with state or without.

    Attributes:
        init: `(theta, data, key) -> state`. Leaves of the state that belong to tasks have the
            task axis first.
        estimate: `(theta, state, data, key) -> (Estimate, state)`.
    """

    init: Callable[[Theta, Data, PRNGKeyArray], Any]
    estimate: Callable[[Theta, Any, Data, PRNGKeyArray], tuple[Estimate, Any]]
