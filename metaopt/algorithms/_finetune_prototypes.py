"""P > M > F: pre-training, meta-training as prototypes, and fine-tuning of the body on a task.

At test time distorted copies of the support set are its pseudo-queries,

    φ₀ = θ,    φₖ₊₁ = φₖ − inner_opt(∇ of the cross-entropy of augment(support) given prototypes
                                      of the support set in φₖ),

and the query set is classified by prototypes in φ_K. Hu et al. 2022 (CVPR), arXiv:2204.07305, §3.
Fine-tuning helps on far domains and can hurt on near ones: choose its rate on validation tasks
with 0 among the candidates, which is no fine-tuning.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt.algorithms._embedding import (
    Augment,
    MakeHead,
    adapt_head,
    head_loss,
    initial_body,
    num_ways_of,
)
from metaopt.algorithms._learner import MetaLearner, inner_loop, query_estimator
from metaopt.algorithms._prototypes import prototype_head
from metaopt.core import Scalar, TaskFamily, checked
from metaopt.tasks._few_shot_embedding import Embed
from metaopt.unroll import Loop


@checked
def finetune_prototypes(
    family: TaskFamily,
    embed: Embed,
    inner_opt: optax.GradientTransformation,
    *,
    augment: Augment,
    probability: Scalar = 0.9,
    head: MakeHead = prototype_head,
    num_steps: int = 40,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    loop: Loop = "scan",
) -> MetaLearner:
    """Prototypes in a body that is tuned on the support set at test time.

    Args:
        family: made by `metaopt.tasks.few_shot_embedding`.
        embed: the embedding it was made with.
        inner_opt: tunes the body.
        augment: `(inputs, key) -> inputs`, which makes pseudo-queries. Static.
        probability: that a pseudo-query is distorted. Traced.
        head: as in `prototypes`. Static.
        num_steps: steps on the body. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        loop: as in `metaopt.unroll.unroll`. Static.

    Returns:
        A learner; `theta` is the body of the family's `params`, of any origin. Its estimator is
        that of `prototypes`: fine-tuning is not part of training.

    Raises:
        ValueError: for counts below 1, or a family of another kind.
    """
    num_ways = num_ways_of("finetune_prototypes", family)
    classify = adapt_head(embed, head, num_ways=num_ways)

    def loss(params, theta, task_params, support, key):
        del theta
        key_augment, key_choice, key_adapt = jax.random.split(key, 3)
        distorted = augment(support.inputs, key_augment)
        chosen = jax.random.bernoulli(key_choice, probability, support.labels.shape)
        chosen = chosen.reshape(-1, *(1,) * (distorted.ndim - 1))
        views = jnp.where(chosen, distorted, support.inputs)
        made = classify(params, task_params, support, key_adapt).head
        return head_loss(made, embed(params, views), support.labels), ()

    tune = inner_loop(
        "finetune_prototypes", loss, lambda theta: inner_opt, num_steps=num_steps, loop=loop
    )

    def adapt(theta, task_params, support, key):
        key_tune, key_head = jax.random.split(key)
        params, _ = tune(theta, task_params, support, key_tune)
        return classify(params, task_params, support, key_head)

    estimator = query_estimator(
        "finetune_prototypes",
        family,
        classify,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
    )
    return MetaLearner(initial_body(family), adapt, estimator)
