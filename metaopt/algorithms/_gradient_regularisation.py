"""Regularised inner gradients: a small network turns them, and a gate per task says how far.

    g' = (1 − z) |g| N(g) / |N(g)| + z g,    N(g) = g + silu(g V) U,    z = sigmoid(gate(support))

for every array, a matrix of rows along its last axis; |·| is the norm of the array, so that N
changes directions alone where z = 0, and nothing changes where z = 1; an array of one entry has no
other direction, and what would turn it gets no gradient. U starts at 0, where this is MAML. The
inner gradient is a constant for the meta-gradient (`gradient="first_order"`), which reaches N and
the gate through the steps. SUPMER: Pan et al. 2023, arXiv:2303.12314, §3.3, whose N has no identity
beside it, and whose parameters are soft prompts of a language model, meta-trained on tasks made of
unlabelled text; prompts and tasks are a family's business here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.algorithms._learner import MetaLearner, initial_params, inner_loop, query_estimator
from metaopt.algorithms._small_networks import (
    apply_network,
    embed_set,
    example_features,
    set_network,
    silent_network,
)
from metaopt.core import Params, TaskFamily, checked
from metaopt.estimators._shared import check_count
from metaopt.unroll import Gradient, Loop, Remat


class LowRank(NamedTuple):
    """What turns the gradient of one array.

    Attributes:
        v: from the last axis to the rank.
        u: back.
    """

    v: Float[Array, "last rank"]
    u: Float[Array, "rank last"]


class GradientRegularisationTheta(NamedTuple):
    """Meta-parameters.

    Attributes:
        params: where tasks start.
        turns: the structure of `params`, with a `LowRank` in place of every array.
        gate: two networks, of an example and of the mean over the support set.
    """

    params: Params
    turns: PyTree
    gate: tuple[PyTree, PyTree]


@checked
def gradient_regularisation(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_features: int,
    rank: int = 4,
    hidden: tuple[int, ...] = (16,),
    num_steps: int = 1,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "first_order",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation and a regularisation of the inner gradient, trained together.

    Args:
        family: the tasks; batches have `inputs` and `labels`, classes or targets.
        inner_opt: any optax optimizer; it is given the regularised gradient.
        num_features: entries of a flattened input plus entries of its target, or classes. Static.
        rank: of N. Static.
        hidden: widths of the network that embeds examples for the gate. Static.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner with `theta` a `GradientRegularisationTheta`, at first without effect.

    Raises:
        ValueError: for counts below 1 or an unknown choice; when traced, if examples have another
            number of features.
    """
    name = "gradient_regularisation"
    check_count(name, rank=rank)
    init_set = set_network(name, num_features, hidden)
    init_gate = silent_network(name, (hidden[-1], 1))

    def loss(params, theta, task_params, support, key):
        del theta
        return family.loss(params, task_params, support, key)

    run = inner_loop(
        name,
        loss,
        lambda gated: optax.chain(regularise(gated[0].turns, gated[1]), inner_opt),
        start=lambda gated: gated[0].params,
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )

    def init(key):
        key_params, key_turns, key_set, key_gate = jax.random.split(key, 4)
        params = initial_params(family)(key_params)
        gate = (init_set(key_set), init_gate(key_gate))
        return GradientRegularisationTheta(params, _turns(params, rank, key_turns), gate)

    def adapt(theta, task_params, support, key):
        embedding = embed_set(theta.gate[0], example_features(name, support, num_features))
        z = jax.nn.sigmoid(apply_network(theta.gate[1], embedding[None])[0, 0])
        return run((theta, z), task_params, support, key)[0]

    estimator = query_estimator(
        name, family, adapt, num_tasks=num_tasks, tasks_at_once=tasks_at_once, gradient=gradient
    )
    return MetaLearner(init, adapt, estimator)


def regularise(turns: PyTree, z: Float[Array, ""]) -> optax.GradientTransformation:
    """An optax transformation that turns every gradient, as far as `z` does not keep it."""

    def of(grad, turn):
        rows = grad.reshape(-1, *grad.shape[-1:]) if grad.ndim else grad.reshape(1, 1)
        turned = rows + jax.nn.silu(rows @ turn.v) @ turn.u
        # Both are zero together, and the square root has no derivative there.
        squares = jnp.sum(rows**2), jnp.sum(turned**2)
        usual = (squares[0] > 0) & (squares[1] > 0)
        ratio = jnp.where(usual, squares[0], 1.0) / jnp.where(usual, squares[1], 1.0)
        return ((1 - z) * jnp.sqrt(ratio) * turned + z * rows).reshape(grad.shape)

    return optax.stateless(lambda updates, params: jax.tree.map(of, updates, turns))


def _turns(params: Params, rank: int, key: PRNGKeyArray) -> PyTree:
    """No turn at first, for every array of `params`."""

    def of(x, key):
        last = x.shape[-1] if x.ndim else 1
        v = jax.nn.initializers.lecun_normal()(key, (last, rank), x.dtype)
        return LowRank(v, jnp.zeros((rank, last), x.dtype))

    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten([of(x, key) for x, key in zip(leaves, keys, strict=True)])
