"""Learned inner losses: a network of predictions, targets and the loss, trained by meta-gradients.

    φₖ₊₁ = φₖ − inner_opt(∇ [L(φₖ) + M(f(x; φₖ), y, L(φₖ); w)]),    w: meta-learned
    M = mean over examples i and outputs j of net(f(xᵢ)ⱼ, yᵢⱼ, arsinh L)

The outer loss stays the task's own. Bechtle et al. 2021 (ICPR), arXiv:1906.05374 (ML³).
There M replaces L; here it is added, and the network's last layer starts at 0, where this is MAML.
Acting on one output at a time, M has no preferred class, and serves any number of them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, Shaped

from metaopt.algorithms._learner import (
    MetaLearner,
    initial_params,
    inner_loop,
    query_estimator,
)
from metaopt.algorithms._small_networks import apply_network, silent_network
from metaopt.core import Params, TaskFamily, checked
from metaopt.unroll import Gradient, Loop, Remat

Start = Literal["learned", "fresh"]


class LearnedLossTheta(NamedTuple):
    """What is learned.

    Attributes:
        params: where tasks start; `()` with `start="fresh"`.
        loss: the loss network.
    """

    params: Params
    loss: PyTree


@checked
def learned_loss(
    family: TaskFamily,
    apply: Callable[[Params, Array], Array],
    inner_opt: optax.GradientTransformation,
    *,
    hidden: tuple[int, ...] = (16, 16),
    start: Start = "learned",
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """A loss for adaptation, and an initialisation, trained for the family's loss on the query set.

    Args:
        family: the tasks; batches have `inputs` and `labels`, classes or targets.
        apply: `(params, inputs) -> outputs` of shape [batch, outputs]: the family's network.
        inner_opt: any optax optimizer.
        hidden: widths of the loss network. Static.
        start: "learned" initial parameters, or "fresh" ones from the family for every task, so that
            the loss has to serve all of them. Static.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. "first_order" is refused when traced: it does not reach the loss, which
            acts through the inner gradient alone. Static.
        loop: as there. Static.

    Returns:
        A learner with `theta` a `LearnedLossTheta`, at first without effect.

    Raises:
        ValueError: for counts below 1 or an unknown choice.
    """
    if start not in get_args(Start):
        raise ValueError(
            f"learned_loss: start={start!r} is unknown; choose from {get_args(Start)}."
        )
    init_net, extra_loss = entry_loss("learned_loss", hidden)

    def loss(params, theta, task_params, support, key):
        value, aux = family.loss(params, task_params, support, key)
        outputs = apply(params, support.inputs)
        return value + extra_loss(theta.loss, outputs, support.labels, value), aux

    run = inner_loop(
        "learned_loss",
        loss,
        lambda theta: inner_opt,
        start=lambda theta: theta.params,
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )

    def init(key):
        key_params, key_net = jax.random.split(key)
        params = initial_params(family)(key_params) if start == "learned" else ()
        return LearnedLossTheta(params, init_net(key_net))

    def adapt(theta, task_params, support, key):
        if start == "fresh":
            key_init, key = jax.random.split(key)
            theta = theta._replace(params=family.init(task_params, key_init))
        return run(theta, task_params, support, key)[0]

    estimator = query_estimator(
        "learned_loss",
        family,
        adapt,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(init, adapt, estimator)


def entry_loss(
    function: str, hidden: tuple[int, ...]
) -> tuple[Callable[..., Any], Callable[..., Float[Array, ""]]]:
    """`(key) -> net` and `(net, outputs, labels, value) -> M`; M is 0 at first."""

    def loss(
        net: PyTree,
        outputs: Float[Array, "batch outputs"],
        labels: Shaped[Array, "batch ..."],
        value: Float[Array, ""],
    ) -> Float[Array, ""]:
        if not jnp.issubdtype(labels.dtype, jnp.inexact):
            labels = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        # Losses range over orders of magnitude and may be negative.
        level = jnp.broadcast_to(jnp.arcsinh(value), outputs.shape)
        features = jnp.stack([outputs, labels.reshape(outputs.shape), level], axis=-1)
        return apply_network(net, features.reshape(-1, 3)).mean().astype(value.dtype)

    return silent_network(function, (3, *hidden, 1)), loss
