"""ProtoTransfer: an embedding without labels, in which every image is a class of its own.

Of N random images each is a prototype and Q distorted copies of it are its queries,

    L(θ) = mean of -ln softmax_k(-|embed(x̃ᵢ) - embed(x_k)|²)ᵢ,

and at test time a linear layer that starts as the prototypes, W = 2 c and b = -|c|², is tuned by a
few steps on the support set. Medina et al. 2020, arXiv:2006.11325: N = 50, Q = 3, 15 steps of Adam
at 1e-3. Two images of one class in a batch are told apart all the same.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt import estimators
from metaopt.algorithms._embedding import (
    Augment,
    base_inputs,
    head_loss,
    initial_body,
    num_ways_of,
)
from metaopt.algorithms._learner import MetaLearner, inner_loop
from metaopt.algorithms._prototypes import prototype_head
from metaopt.core import TaskFamily, checked
from metaopt.data import Pool
from metaopt.estimators._shared import check_count, check_tasks
from metaopt.tasks import Embedded
from metaopt.tasks._few_shot_embedding import Embed


@checked
def proto_transfer(
    family: TaskFamily,
    embed: Embed,
    inner_opt: optax.GradientTransformation,
    *,
    augment: Augment,
    num_images: int = 50,
    num_views: int = 3,
    num_steps: int = 15,
    num_tasks: int = 1,
    tasks_at_once: int | None = None,
) -> MetaLearner:
    """Self-supervised prototypes, and a head that is tuned from them.

    Args:
        family: made by `metaopt.tasks.few_shot_embedding`.
        embed: the embedding it was made with.
        inner_opt: tunes the head on a support set; `optax.adam(1e-3)` is the paper's.
        augment: `(inputs, key) -> inputs`; it must vary what varies within a class. Static.
        num_images: N, prototypes of a batch. Static.
        num_views: Q, distorted copies of each. Static.
        num_steps: steps on the head; 0 leaves the prototypes. Static.
        num_tasks: batches per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.

    Returns:
        A learner; `theta` is the body of the family's `params`. Its estimator does not read labels.

    Raises:
        ValueError: for counts below 1 (`num_steps` below 0), or a family of another kind; when
            traced, if the pool has fewer than `num_images` examples.
    """
    check_count("proto_transfer", num_images=num_images, num_views=num_views)
    check_tasks("proto_transfer", num_tasks, tasks_at_once)
    num_ways = num_ways_of("proto_transfer", family)

    def meta_loss(theta, data, key):
        pool = base_inputs("proto_transfer", data)
        pool = pool.reshape(-1, *pool.shape[2:])
        if len(pool) < num_images:
            raise ValueError(
                f"proto_transfer: num_images={num_images}, but the pool has {len(pool)} examples."
            )
        key_draw, key_views = jax.random.split(key)
        images = pool[jax.random.permutation(key_draw, len(pool))[:num_images]]
        identity = jnp.arange(num_images)
        head = prototype_head(embed(theta, images), identity, num_ways=num_images)
        views = augment(jnp.repeat(images, num_views, axis=0), key_views)
        return head_loss(head, embed(theta, views), jnp.repeat(identity, num_views))

    def adapt(theta, task_params, support, key):
        features = embed(theta, support.inputs)
        head = prototype_head(features, support.labels, num_ways=num_ways)
        if num_steps:
            head, _ = tune(head, task_params, Pool(features, support.labels), key)
        return Embedded(theta, head)

    def loss(params, theta, task_params, support, key):
        del theta, task_params, key
        return head_loss(params, support.inputs, support.labels), ()

    if num_steps:
        tune = inner_loop("proto_transfer", loss, lambda theta: inner_opt, num_steps=num_steps)
    estimator = estimators.backprop(meta_loss, num_tasks=num_tasks, tasks_at_once=tasks_at_once)
    return MetaLearner(initial_body(family), adapt, estimator)
