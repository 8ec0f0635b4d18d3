"""Interval bound interpolation (IBI): new tasks between features and what bounds them.

    h' = (1 - λ_c) h + λ_c b,    b = upper(h) if ν_c else lower(h),    c the class of the example
    L = ½ (L(h) + L(h')),        λ_c ~ Beta(a, a),    ν_c ~ Bernoulli(½)

with (lower, h, upper) the bounds of `metaopt.algorithms.interval_bounds`: where `mlti` mixes a task
with another, here every class moves towards one side of its own neighbourhood, labels unchanged.
Datta et al. 2022, arXiv:2204.03511, §3, who interpolate one task of every batch and train MAML
or prototypes on it. Their code draws λ and ν in every forward pass; here they belong to the task,
one draw for all inner steps and the query set. Train on the wrapped family, test on the family
itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metaopt.algorithms._interval_bounds import Bounds
from metaopt.algorithms._mlti import interpolate
from metaopt.core import Params, Scalar, TaskFamily, TaskParams, checked
from metaopt.estimators._shared import check_count, check_positive


class BoundedTask(NamedTuple):
    """A task and where between its bounds each class is.

    Attributes:
        task: of the family.
        share: λ, 0 for a task that is left as it is.
        upper: ν, whether the upper bound is meant.
    """

    task: TaskParams
    share: Float[Array, " classes"]
    upper: Bool[Array, " classes"]


class BoxedInputs(NamedTuple):
    """Inputs whose features are to be interpolated, by a network of `mix_bounds`.

    Attributes:
        inputs: the inputs themselves.
        share: λ of every example.
        upper: ν of every example.
        eps: half the side of the boxes around the inputs.
    """

    inputs: Any
    share: Float[Array, " n"]
    upper: Bool[Array, " n"]
    eps: Scalar


@checked
def interval_tasks(
    family: TaskFamily,
    *,
    num_classes: int,
    eps: Scalar = 0.05,
    concentration: Scalar = 2.0,
    probability: Scalar = 0.25,
) -> TaskFamily:
    """Adds to the loss of some tasks that of an interpolated one.

    Args:
        family: classification by a network made by `mix_bounds`; its batches have `inputs` and
            integer `labels`.
        num_classes: classes of a task; labels are below it. Static.
        eps: half the side of the boxes around inputs. Traced.
        concentration: a of the Beta distribution of λ. Traced.
        probability: that a task is interpolated at all. Traced.

    Returns:
        A family with `task_params` of type `BoundedTask`; batches and `aux` are those of `family`.

    Raises:
        ValueError: if `num_classes < 1` or `concentration` is not positive; when traced, for
            labels that are no integers.
    """
    check_count("interval_tasks", num_classes=num_classes)
    check_positive("interval_tasks", concentration=concentration)

    def sample(key):
        key_task, key_share, key_upper, key_whether = jax.random.split(key, 4)
        share = jax.random.beta(key_share, concentration, concentration, (num_classes,))
        moved = jax.random.bernoulli(key_whether, probability)
        upper = jax.random.bernoulli(key_upper, shape=(num_classes,))
        return BoundedTask(family.sample(key_task), jnp.where(moved, share, 0.0), upper)

    def init(task_params, key):
        return family.init(task_params.task, key)

    def batch(data, task_params, key):
        return family.batch(data, task_params.task, key)

    def loss(params, task_params, batch, key):
        task, share, upper = task_params
        if not jnp.issubdtype(batch.labels.dtype, jnp.integer):
            raise ValueError(
                f"interval_tasks: labels are {batch.labels.dtype}, but bounds are interpolated "
                "per class; use a family whose labels are integers."
            )
        boxed = BoxedInputs(batch.inputs, share[batch.labels], upper[batch.labels], eps)
        plain, aux = family.loss(params, task, batch, key)
        moved, _ = family.loss(params, task, batch._replace(inputs=boxed), jax.random.clone(key))
        return (plain + moved) / 2, aux

    def normalise(loss, task_params):
        return family.normalise(loss, task_params.task)

    return TaskFamily(sample, init, batch, loss, normalise)


@checked
def mix_bounds(
    bounds: Callable[..., Bounds], above: Callable[[Params, Array], Array]
) -> Callable[[Params, Any], Array]:
    """A network in two parts, between which `BoxedInputs` move towards their bounds.

    Args:
        bounds: `(params, inputs, *, eps) -> Bounds` of the first layers, made of
            `interval_bounds`.
        above: `(params, hidden) -> outputs`, the other layers.

    Returns:
        `(params, inputs) -> outputs`, with inputs an array or `BoxedInputs`.
    """

    def apply(params, inputs):
        if not isinstance(inputs, BoxedInputs):
            return above(params, bounds(params, inputs, eps=0.0).centre)
        found = bounds(params, inputs.inputs, eps=inputs.eps)
        side = jnp.where(inputs.upper[:, None], found.upper, found.lower)
        return above(params, jax.vmap(interpolate)(side, found.centre, inputs.share))

    return apply
