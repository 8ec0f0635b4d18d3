"""Task interpolation (MLTI): new tasks between two, for when training tasks are few.

    λ ~ Beta(a, a),    x = λ xᵢ + (1 - λ) xⱼ,    and for tasks with the same labels y likewise

with one λ for the support and the query set, and x an input or a hidden layer below the head. In
classification class r of one task is paired with class r of the other and their mixture is a class
of its own; with random classes in random order this is the paper's random pairing. Yao et al. 2021,
arXiv:2106.02695, §4. A task is left as it is with probability 1 - `probability`, that is λ = 1.
Train on the wrapped family, test on the family itself.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Params, Scalar, TaskFamily, TaskParams, checked
from metaopt.estimators._shared import check_positive

Where = Literal["inputs", "hidden"]


class MixedTask(NamedTuple):
    """Two tasks and how much there is of the first.

    Attributes:
        first: a task.
        second: another.
        share: λ.
    """

    first: TaskParams
    second: TaskParams
    share: Float[Array, ""]


class MixedInputs(NamedTuple):
    """Inputs of two tasks, to be mixed after some layers by `mix_hidden`.

    Attributes:
        first: of one task.
        second: of the other.
        share: λ.
    """

    first: Any
    second: Any
    share: Float[Array, ""]


@checked
def mlti(
    family: TaskFamily,
    *,
    concentration: Scalar = 2.0,
    probability: Scalar = 0.5,
    where: Where = "inputs",
) -> TaskFamily:
    """Mixes pairs of tasks of a family.

    Args:
        family: its batches hold arrays; those of floating point are mixed, others are those of the
            first task. Targets are thus mixed and classes paired.
        concentration: a of the Beta distribution of λ; the paper has 2 for images, 0.5 elsewhere.
            Traced.
        probability: that a task is mixed at all. Traced.
        where: "inputs", or "hidden": batches then have `MixedInputs` as `inputs`, for a network
            made by `mix_hidden`. Static.

    Returns:
        A family with `task_params` of type `MixedTask`; losses and normaliser are those of the
        first task on the mixed batch.

    Raises:
        ValueError: if `concentration` is not positive or `where` unknown.
    """
    check_positive("mlti", concentration=concentration)
    if where not in get_args(Where):
        raise ValueError(f"mlti: where={where!r} is unknown; choose from {get_args(Where)}.")

    def sample(key):
        key_first, key_second, key_share, key_whether = jax.random.split(key, 4)
        share = jax.random.beta(key_share, concentration, concentration)
        mixed = jax.random.bernoulli(key_whether, probability)
        share = jnp.where(mixed, share, 1.0)
        return MixedTask(family.sample(key_first), family.sample(key_second), share)

    def init(task_params, key):
        return family.init(task_params.first, key)

    def batch(data, task_params, key):
        first = family.batch(data, task_params.first, key)
        second = family.batch(data, task_params.second, jax.random.clone(key))
        mixed = interpolate(first, second, task_params.share)
        if where == "inputs":
            return mixed
        return mixed._replace(inputs=MixedInputs(first.inputs, second.inputs, task_params.share))

    def loss(params, task_params, batch, key):
        return family.loss(params, task_params.first, batch, key)

    def normalise(loss, task_params):
        return family.normalise(loss, task_params.first)

    return TaskFamily(sample, init, batch, loss, normalise)


@checked
def mix_hidden(
    below: Callable[[Params, Array], Array], above: Callable[[Params, Array], Array]
) -> Callable[[Params, Any], Array]:
    """A network in two parts, between which `MixedInputs` are mixed.

    Args:
        below: `(params, inputs) -> hidden`.
        above: `(params, hidden) -> outputs`.

    Returns:
        `(params, inputs) -> outputs`, with inputs an array or `MixedInputs`.
    """

    def apply(params, inputs):
        if not isinstance(inputs, MixedInputs):
            return above(params, below(params, inputs))
        first, second = below(params, inputs.first), below(params, inputs.second)
        return above(params, interpolate(first, second, inputs.share))

    return apply


def interpolate(first: Any, second: Any, share: Scalar) -> Any:
    """λ of the first tree plus 1 - λ of the second; leaves that are not floats are the first's."""

    def mix(x, y):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return x
        weight = jnp.asarray(share, jnp.result_type(x))
        return weight * x + (1 - weight) * y

    return jax.tree.map(mix, first, second)
