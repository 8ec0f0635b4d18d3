"""Interval bounds: a neighbourhood of the inputs stays a neighbourhood in feature space.

A box of centre m and radius r goes through a layer as a box, exactly per coordinate,

    m' = m W + b,    r' = r |W|,    then    lower' = act(m' - r'), upper' = act(m' + r'),

for a monotone activation, and so through any number of layers as an upper bound. The query loss of
MAML is combined with how far the bounds are from the features of the query set themselves,

    L = Σ wᵢ Lᵢ,    w = softmax(L / T),    L = (cross-entropy, |upper - f|², |lower - f|²).

Datta et al. 2022, arXiv:2204.03511, §3. Weights are taken as constants unless `detach=False`, as
in their code. Without a neighbourhood, `eps = 0`, there are no bounds and the loss is MAML's.
`metaopt.algorithms.interval_tasks` makes new tasks between the bounds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt.algorithms._learner import MetaLearner, episode_estimator, initial_params
from metaopt.algorithms._maml import adapt as maml_adapt
from metaopt.core import Scalar, TaskFamily, checked
from metaopt.estimators._shared import check_positive
from metaopt.unroll import Gradient, Loop, Remat


class Bounds(NamedTuple):
    """Features, and what features of inputs nearby lie between.

    Attributes:
        centre: features of the inputs.
        lower: none nearby is below.
        upper: none nearby is above.
    """

    centre: Float[Array, "n features"]
    lower: Float[Array, "n features"]
    upper: Float[Array, "n features"]


@checked
def interval_bounds(
    layers: Sequence[dict[str, Array]],
    inputs: Float[Array, "n ..."],
    *,
    eps: Scalar,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Bounds:
    """Sends boxes around inputs through dense layers, each followed by the activation.

    Args:
        layers: `{"w": [fan_in, fan_out], "b": [fan_out]}`, as in the perceptrons of
            `metaopt.tasks`.
        inputs: flattened.
        eps: half the side of the boxes, in units of the inputs. Traced.
        activation: applied entry by entry; it must not decrease. Static.

    Returns:
        See `Bounds`; all three are equal at `eps = 0`, up to rounding.
    """
    centre = inputs.reshape(len(inputs), -1)
    lower, upper = centre - eps, centre + eps
    for layer in layers:
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        middle = middle @ layer["w"] + layer["b"][None]
        radius = radius @ jnp.abs(layer["w"])
        lower, upper = activation(middle - radius), activation(middle + radius)
        centre = activation(centre @ layer["w"] + layer["b"][None])
    return Bounds(centre, lower, upper)


@checked
def interval_maml(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    bounds: Callable[..., Bounds],
    *,
    eps: Scalar = 0.05,
    temperature: Scalar = 1.0,
    detach: bool = True,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """MAML whose first layers are to be insensitive to small changes of the inputs.

    Args:
        family: the tasks; their batches have `inputs`.
        inner_opt: any optax optimizer.
        bounds: `(params, inputs, *, eps) -> Bounds` of the first layers, made of
            `interval_bounds`.
        eps: half the side of the boxes, not negative. Traced.
        temperature: T of the weights. Traced.
        detach: whether no gradient passes through the weights. Static.
        num_steps: inner steps K, on the support loss alone. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner; `theta` is `family.init` of any task.

    Raises:
        ValueError: for counts below 1, an unknown choice or a `temperature` that is not positive.
    """
    check_positive("interval_maml", temperature=temperature)
    adapted = maml_adapt(
        family, inner_opt, num_steps=num_steps, remat=remat, gradient=gradient, loop=loop
    )

    def episode_loss(theta, episode, key):
        key_adapt, key_loss = jax.random.split(key)
        params = adapted(theta, episode.task_params, episode.support, key_adapt)
        loss, _ = family.loss(params, episode.task_params, episode.query, key_loss)
        loss = family.normalise(loss, episode.task_params)
        found = bounds(params, episode.query.inputs, eps=eps)
        return _combine(loss, found, eps, temperature, detach)

    estimator = episode_estimator(
        "interval_maml",
        family,
        episode_loss,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(initial_params(family), adapted, estimator)


def _combine(loss, found: Bounds, eps, temperature, detach) -> Float[Array, ""]:
    widths = [jnp.mean((side - found.centre) ** 2) for side in (found.upper, found.lower)]
    losses = jnp.stack([loss, *(x.astype(loss.dtype) for x in widths)])
    # A box without volume has no bounds to weigh.
    exists = jnp.stack([jnp.array(True), *2 * [jnp.asarray(eps) > 0]])
    weights = jax.nn.softmax(losses / temperature, where=exists)
    if detach:
        weights = jax.lax.stop_gradient(weights)
    return jnp.sum(weights * jnp.where(exists, losses, 0.0))
