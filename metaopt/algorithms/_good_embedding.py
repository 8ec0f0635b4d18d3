"""A good embedding: one classifier of all base classes, and logistic regression on its features.

    θ = argmin  mean over the base classes of cross-entropy(head(embed(x)), class of x)
    φ = argmin_W,b  C Σ over the support set of cross-entropy(W z + b, y) + ½ |W|²,   z = unit embed

There is no inner loop in training and none is differentiated; the convex problem is solved at test
time by L-BFGS, on features of norm 1 after their last rectifier. A teacher adds distillation:

    α cross-entropy + (1 - α) T² KL(teacher at T || student at T)

Tian et al. 2020 (ECCV), arXiv:2003.11539, §3: their α = ½, T = 4, C = 1. The factor T² is that of
Hinton et al. 2015, arXiv:1503.02531, and of the public code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from metaopt import estimators
from metaopt.algorithms._embedding import (
    Augment,
    adapt_head,
    base_inputs,
    head_loss,
    initial_body,
    num_features_of,
    num_ways_of,
)
from metaopt.algorithms._learner import MetaLearner
from metaopt.core import Data, Scalar, TaskFamily, checked
from metaopt.estimators._shared import check_count, check_positive
from metaopt.tasks import Embedded, LinearHead, unit_features
from metaopt.tasks._few_shot_embedding import Embed, head_logits, linear_head


class Distilled(NamedTuple):
    """Data with a teacher: the next generation of a good embedding.

    Attributes:
        data: made by `metaopt.tasks.episodes`.
        teacher: theta of the generation before.
    """

    data: Data
    teacher: Embedded


@checked
def logistic_regression(
    features: Float[Array, "n features"],
    labels: Int[Array, " n"],
    *,
    num_ways: int,
    strength: Scalar = 1.0,
    num_steps: int = 20,
) -> LinearHead:
    """Multinomial logistic regression with an l2 penalty on the weights, by L-BFGS from zero.

    Args:
        features: of the support set.
        labels: their classes, from 0.
        num_ways: classes. Static.
        strength: C, the inverse of the penalty; the cross-entropy is summed. Traced.
        num_steps: steps of L-BFGS. Static.

    Returns:
        The head, in the dtype of the features. Its line search stops by itself, so it has no
        derivative in reverse mode; the minimum of a convex problem has one by
        `metaopt.implicit.minimise`.

    Raises:
        ValueError: for a count below 1 or a `strength` that is not positive.
    """
    check_count("logistic_regression", num_ways=num_ways, num_steps=num_steps)
    check_positive("logistic_regression", strength=strength)
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))

    def objective(head):
        return strength * len(labels) * head_loss(head, wide, labels) + 0.5 * jnp.sum(head.w**2)

    # Convexity gives every pair its curvature, so that a search for decrease alone is enough.
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, store_grad=True)
    solver = optax.lbfgs(linesearch=search)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry, _):
        head, state = carry
        value, grad = value_and_grad(head, state=state)
        updates, state = solver.update(
            grad, state, head, value=value, grad=grad, value_fn=objective
        )
        return (optax.apply_updates(head, updates), state), None

    width = features.shape[-1]
    start = LinearHead(jnp.zeros((width, num_ways), wide.dtype), jnp.zeros(num_ways, wide.dtype))
    (head, _), _ = jax.lax.scan(step, (start, solver.init(start)), None, length=num_steps)
    return jax.tree.map(lambda x: x.astype(features.dtype), head)


@checked
def good_embedding(
    family: TaskFamily,
    embed: Embed,
    *,
    num_classes: int,
    batch_size: int = 64,
    augment: Augment | None = None,
    strength: Scalar = 1.0,
    temperature: Scalar = 4.0,
    hard_share: Scalar = 0.5,
    num_steps: int = 20,
) -> MetaLearner:
    """An embedding trained by plain classification, with a convex learner on top.

    Args:
        family: made by `metaopt.tasks.few_shot_embedding` with `unit_features(embed)`, which is
            what adapted heads take.
        embed: the embedding itself, which the classifier of the base classes takes.
        num_classes: base classes, all those of the pool it is trained on. Static.
        batch_size: examples per estimate. Static.
        augment: `(inputs, key) -> inputs`, applied to every batch of training. Static.
        strength: C of the logistic regression. Traced.
        temperature: T of the distillation. Traced.
        hard_share: α, the weight of the true labels in distillation. Traced.
        num_steps: steps of L-BFGS. Static.

    Returns:
        A learner; `theta` is an `Embedded` with a head over the base classes. Its estimator takes
        `metaopt.tasks.episodes(pool)`, or `Distilled(episodes(pool), teacher)`.

    Raises:
        ValueError: for counts below 1, settings that are not positive, or a family of another kind;
            when traced, if the pool has another number of classes.
    """
    check_count("good_embedding", num_classes=num_classes, batch_size=batch_size)
    check_positive("good_embedding", temperature=temperature)
    num_ways = num_ways_of("good_embedding", family)
    num_features = num_features_of("good_embedding", family)

    def init(key):
        key_body, key_head = jax.random.split(key)
        return Embedded(
            initial_body(family)(key_body), linear_head(num_features, num_classes, key_head)
        )

    def draw(data, key) -> tuple[Array, Array]:
        inputs = base_inputs("good_embedding", data)
        if len(inputs) != num_classes:
            raise ValueError(
                f"good_embedding: the pool has {len(inputs)} classes, but "
                f"num_classes={num_classes}; pass as many."
            )
        key_class, key_example, key_augment = jax.random.split(key, 3)
        labels = jax.random.randint(key_class, (batch_size,), 0, num_classes)
        examples = jax.random.randint(key_example, (batch_size,), 0, inputs.shape[1])
        drawn = inputs[labels, examples]
        return (drawn if augment is None else augment(drawn, key_augment)), labels

    def logits_of(theta, inputs):
        return head_logits(theta.head, embed(theta.body, inputs))

    def meta_loss(theta, data, key):
        teacher = None
        if isinstance(data, Distilled):
            data, teacher = data
        inputs, labels = draw(data, key)
        loss = head_loss(theta.head, embed(theta.body, inputs), labels)
        if teacher is None:
            return loss
        student = logits_of(theta, inputs)
        target = jax.lax.stop_gradient(logits_of(teacher, inputs))
        soft = _divergence(target / temperature, student / temperature)
        return hard_share * loss + (1 - hard_share) * temperature**2 * soft

    def solve(features, labels, *, num_ways):
        return logistic_regression(
            features, labels, num_ways=num_ways, strength=strength, num_steps=num_steps
        )

    frozen = adapt_head(unit_features(embed), solve, num_ways=num_ways)

    def adapt(theta, task_params, support, key):
        return frozen(theta.body, task_params, support, key)

    return MetaLearner(init, adapt, estimators.backprop(meta_loss, num_tasks=1))


def _divergence(target, logits) -> Float[Array, ""]:
    """KL(softmax(target) || softmax(logits)), the mean over examples."""
    log_p, log_q = jax.nn.log_softmax(target), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()
