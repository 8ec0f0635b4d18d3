"""Neural procedural biases (NPBML): all of the inner loop learned, and modulated by the task.

    φ₀ = θ,    φₖ₊₁ = φₖ − α P ∇ [L(φₖ ⊙ c) + M(f(x; φₖ ⊙ c), y, L; w ⊙ c)],    c = c(support set)

P is the Kronecker preconditioner of `meta_curvature`, M the loss of `learned_loss`, and ⊙ c
feature-wise linear modulation (FiLM; Perez et al. 2018, arXiv:1709.07871): a layer's h = x W + b
becomes γ ⊙ x W + b + β, which covers γ ⊙ h + β, with

    γ = 1 + s tanh(·),    β = s tanh(·)

of a network of the support set's mean embedding. Bounded, because an unbounded γ makes the step
size unbounded too. Every part starts without effect, where this is MAML. Raymond et al. 2024,
arXiv:2406.07983, whose networks are convolutional, whose P consists of warp layers and whose M
has a transductive and a regularising term besides; the composition is theirs, the parts are those
of this library.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from metaopt.algorithms._learned_loss import entry_loss
from metaopt.algorithms._learner import (
    MetaLearner,
    initial_params,
    inner_loop,
    query_estimator,
)
from metaopt.algorithms._meta_curvature import identity_factors, precondition
from metaopt.algorithms._small_networks import (
    apply_network,
    embed_set,
    example_features,
    set_network,
    silent_network,
)
from metaopt.core import Batch, Params, Scalar, TaskFamily, checked
from metaopt.estimators._shared import check_positive
from metaopt.unroll import Gradient, Loop, Remat

Part = Literal["preconditioner", "loss", "modulation"]


class NPBMLTheta(NamedTuple):
    """What is learned; `()` for a part that is left out.

    Attributes:
        params: where tasks start.
        factors: the preconditioner, as in `MetaCurvatureTheta`.
        loss: the loss network.
        modulation: the networks that embed the support set and make the modulation of it.
    """

    params: Params
    factors: PyTree
    loss: PyTree
    modulation: PyTree


@checked
def npbml(
    family: TaskFamily,
    apply: Callable[[Params, Array], Array],
    inner_opt: optax.GradientTransformation,
    *,
    num_features: int | None = None,
    parts: tuple[Part, ...] = ("preconditioner", "loss", "modulation"),
    hidden: tuple[int, ...] = (16, 16),
    strength: Scalar = 0.5,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation, a preconditioner, a loss and a modulation by the task, trained together.

    Args:
        family: the tasks; batches have `inputs` and `labels`, classes or targets.
        apply: `(params, inputs) -> outputs` of shape [batch, outputs]: the family's network.
        inner_opt: any optax optimizer; it is given the preconditioned gradient.
        num_features: entries of a flattened input plus entries of its target, or classes; for the
            modulation. Static.
        parts: which of them to learn besides the initialisation. Static.
        hidden: widths of the loss network and of the embedding of the support set. Static.
        strength: s, bound of the modulation. Traced.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. "first_order" is refused when traced if there is a learned loss. Static.
        loop: as there. Static.

    Returns:
        A learner with `theta` an `NPBMLTheta`, at first without effect; `adapt` returns parameters
        with the modulation in them.

    Raises:
        ValueError: for counts below 1, an unknown choice, or a modulation without `num_features`;
            when traced, if examples have another number of features.
    """
    unknown = set(parts) - set(get_args(Part))
    if unknown:
        raise ValueError(
            f"npbml: parts={parts} has unknown {sorted(unknown)}; choose from {get_args(Part)}."
        )
    check_positive("npbml", strength=strength)
    init_loss, extra_loss = entry_loss("npbml", hidden)
    is_modulated = "modulation" in parts
    if is_modulated:
        init_modulation, conditions = _modulation(num_features, hidden, strength)

    def loss(params, theta, task_params, support, key):
        support, condition = support
        params, net = _modulate((params, theta.loss), condition)
        value, aux = family.loss(params, task_params, support, key)
        if "loss" in parts:
            outputs = apply(params, support.inputs)
            value = value + extra_loss(net, outputs, support.labels, value)
        return value, aux

    def optimizer(theta):
        if "preconditioner" not in parts:
            return inner_opt
        return optax.chain(precondition(theta.factors), inner_opt)

    run = inner_loop(
        "npbml",
        loss,
        optimizer,
        start=lambda theta: theta.params,
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )

    def init(key):
        key_params, key_loss, key_modulation = jax.random.split(key, 3)
        params = initial_params(family)(key_params)
        factors = identity_factors(params) if "preconditioner" in parts else ()
        net = init_loss(key_loss) if "loss" in parts else ()
        nets = init_modulation((params, net), key_modulation) if is_modulated else ()
        return NPBMLTheta(params, factors, net, nets)

    def adapt(theta, task_params, support, key):
        condition = conditions(theta.modulation, support) if is_modulated else None
        params, _ = run(theta, task_params, (support, condition), key)
        return _modulate((params, theta.loss), condition)[0]

    estimator = query_estimator(
        "npbml",
        family,
        adapt,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(init, adapt, estimator)


def _modulation(
    num_features: int | None, hidden: tuple[int, ...], strength: Scalar
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The initial networks of a modulation, and what they make of a support set."""
    if num_features is None:
        raise ValueError(
            "npbml: the modulation needs num_features, the entries of a flattened input plus those "
            "of its target (or the classes); or leave 'modulation' out of parts."
        )
    init_set = set_network("npbml", num_features, hidden)

    def init(modulated, key):
        key_set, key_head = jax.random.split(key)
        widths = (hidden[-1], hidden[-1], sum(_last_axes(modulated)))
        return init_set(key_set), silent_network("npbml", widths)(key_head)

    def conditions(nets, support: Batch):
        net, head = nets
        embedding = embed_set(net, example_features("npbml", support, num_features))
        return strength * jnp.tanh(apply_network(head, embedding[None])[0])

    return init, conditions


def _modulate(modulated: PyTree, condition: Float[Array, " conditions"] | None) -> PyTree:
    """Scales the outputs of weights, shifts biases; None leaves them."""
    if condition is None:
        return modulated
    leaves, treedef = jax.tree.flatten(modulated)
    pieces = jnp.split(condition, np.cumsum(_last_axes(modulated))[:-1])

    def move(x, piece):
        if x.ndim == 0:
            return x
        piece = piece.reshape((1,) * (x.ndim - 1) + piece.shape)
        return (x + piece if x.ndim == 1 else x * (1 + piece)).astype(x.dtype)

    return treedef.unflatten([move(x, piece) for x, piece in zip(leaves, pieces, strict=True)])


def _last_axes(modulated: PyTree) -> list[int]:
    """How many numbers modulate each array; scalars are left alone."""
    return [x.shape[-1] if x.ndim else 0 for x in jax.tree.leaves(modulated)]
