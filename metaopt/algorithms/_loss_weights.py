"""Learned weights of the support examples: which of them a task should trust.

    φₖ₊₁ = φₖ − inner_opt(∇ (1/n) Σᵢ Wᵢ ℓᵢ(φₖ)),    Wᵢ = 1 + tanh net(xᵢ, yᵢ, mean of embeddings)
    L(θ) = mean over tasks of L_query(φ_K) + λ · mean of (Wᵢ − 1)²

Weights lie in (0, 2) and start at 1, where this is MAML. The last term ties their mean to 1, since
a common factor of all weights is a step size. From MetaF2N, Yin et al. 2023 (ICCV),
arXiv:2309.08113, where i runs over the pixels of one image and a network of images makes W;
here it runs over support examples, and a set embedding lets a weight depend on the others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from metaopt.algorithms._learner import (
    MetaLearner,
    episode_estimator,
    initial_params,
    inner_loop,
)
from metaopt.algorithms._small_networks import (
    apply_network,
    embed_set,
    example_features,
    set_network,
    silent_network,
)
from metaopt.core import Batch, Params, Scalar, TaskFamily, checked
from metaopt.unroll import Gradient, Loop, Remat


class LossWeightsTheta(NamedTuple):
    """What is learned.

    Attributes:
        params: where tasks start.
        weights: the networks that embed the support set and weigh its examples.
    """

    params: Params
    weights: PyTree


@checked
def loss_weights(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_features: int,
    hidden: tuple[int, ...] = (32, 32),
    penalty: Scalar = 1e-3,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation and weights of support examples, trained for the query loss.

    Args:
        family: the tasks; its loss is a mean over the batch, whose `labels` are classes or targets.
        inner_opt: any optax optimizer.
        num_features: entries of a flattened input plus entries of its target, or classes. Static.
        hidden: widths of the embedding and of the network of the weights. Static.
        penalty: λ. Traced.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: "reverse", "mixed" or "auto", as there; weights act through the inner gradient,
            which "first_order" takes as constant. Static.
        loop: as there. Static.

    Returns:
        A learner with `theta` a `LossWeightsTheta`; see `support_weights` for the weights.

    Raises:
        ValueError: for counts below 1, an unknown choice or a first-order gradient; when traced, if
            examples have another number of features.
    """
    if gradient == "first_order":
        raise ValueError(
            "loss_weights: gradient='first_order' does not reach the weights, which act through "
            "the inner gradient; use gradient='reverse' or 'mixed'."
        )
    init_set = set_network("loss_weights", num_features, hidden)
    init_net = silent_network("loss_weights", (num_features + hidden[-1], *hidden, 1))

    def loss(params, theta, task_params, support, key):
        del theta
        batch, weights = support

        def one(example):
            alone = jax.tree.map(lambda x: x[None], example)
            return family.loss(params, task_params, alone, key)

        losses, aux = jax.vmap(one)(batch)
        return (weights * losses).mean(), aux

    run = inner_loop(
        "loss_weights",
        loss,
        lambda theta: inner_opt,
        start=lambda theta: theta.params,
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )

    def init(key):
        key_params, key_set, key_net = jax.random.split(key, 3)
        weights = (init_set(key_set), init_net(key_net))
        return LossWeightsTheta(initial_params(family)(key_params), weights)

    def adapt(theta, task_params, support, key):
        weighted = (support, support_weights(theta, support))
        return run(theta, task_params, weighted, key)[0]

    def episode_loss(theta, episode, key):
        key_adapt, key_loss = jax.random.split(key)
        params = adapt(theta, episode.task_params, episode.support, key_adapt)
        value, _ = family.loss(params, episode.task_params, episode.query, key_loss)
        spread = jnp.square(support_weights(theta, episode.support) - 1).mean()
        return family.normalise(value, episode.task_params) + penalty * spread

    estimator = episode_estimator(
        "loss_weights",
        family,
        episode_loss,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(init, adapt, estimator)


def support_weights(theta: LossWeightsTheta, support: Batch) -> Float[Array, " batch"]:
    """The weights that `loss_weights` gives to the examples of a support set, in (0, 2).

    Args:
        theta: of `loss_weights`.
        support: the examples.

    Returns:
        One weight per example.

    Raises:
        ValueError: if examples have another number of features than those `theta` was made for.
    """
    embed, weigh = theta.weights
    num_features = embed[0]["w"].shape[0]
    features = example_features("loss_weights", support, num_features)
    embedding = embed_set(embed, features)[None]
    embeddings = jnp.broadcast_to(embedding, (len(features), embedding.shape[1]))
    return 1 + jnp.tanh(apply_network(weigh, jnp.concatenate([features, embeddings], 1))[:, 0])
