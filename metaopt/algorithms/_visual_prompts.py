"""Visual prompts from a meta-prompt, one per cluster (DAM-VP): what is added to a model's inputs.

    x' = x + m p_c,    c = argmin over clusters |f(x) - mean of f over the cluster|

The model is frozen; p is all that a task trains, m a frame or the whole image. Clusters of a data
set are found in the model's own features f, by average linkage up to a distance. All p_c start at
one meta-prompt, found by Reptile on source tasks. Huang et al. 2023 (CVPR), arXiv:2303.08138, §3.

Differs from the paper: there, the clusters of a source data set share one loss; here, the family
may draw each as a task of its own. The meta-prompt starts at 0, the frozen model, instead of at
random. The rate of the public code's adaptation, 10⁴, belongs to its scale of losses and prompts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from metaopt.algorithms._learner import MetaLearner
from metaopt.algorithms._reptile import reptile
from metaopt.core import Scalar, TaskFamily, TaskParams, checked
from metaopt.estimators._shared import check_count, check_positive
from metaopt.tasks._classification import Metrics
from metaopt.unroll import Loop


class ClusteredTask(NamedTuple):
    """A task whose images fall into clusters.

    Attributes:
        task: of the family.
        prototypes: the mean features of each cluster.
    """

    task: TaskParams
    prototypes: Float[Array, "clusters features"]


class FeatureClusters(NamedTuple):
    """What `feature_clusters` finds.

    Attributes:
        labels: the cluster of every example.
        prototypes: the mean of every cluster.
    """

    labels: Int[Array, " n"]
    prototypes: Float[Array, "clusters features"]


@checked
def prompted(
    family: TaskFamily,
    predict: Callable[[Array], Array],
    *,
    image_shape: tuple[int, ...],
    frame: int | None = None,
    features: Callable[[Array], Array] | None = None,
) -> TaskFamily:
    """A family whose tasks train what is added to the inputs of a frozen model.

    Its weights are arguments of a compiled program where this function is called inside it.

    Args:
        family: what draws tasks and their batches, with `inputs` and integer `labels`; its
            parameters and its loss are not used.
        predict: the frozen model, `(images) -> logits`.
        image_shape: height, width and channels of an image. Static.
        frame: how far a prompt reaches in from the edges, in pixels; None: everywhere. Static.
        features: f, `(images) -> features` of shape [n, features]; needed for a `ClusteredTask`.

    Returns:
        A family with `task_params` those of `family`, for one prompt, or a `ClusteredTask`, for as
        many as there are prototypes; `params` are prompts [clusters, *image_shape], at first 0,
        and `aux` is the accuracy.

    Raises:
        ValueError: if `image_shape` is not one or `frame < 1`; when traced, if `features` are
            missing or params are as many as another number of clusters.
    """
    check_count("prompted", **{f"image_shape[{i}]": size for i, size in enumerate(image_shape)})
    if len(image_shape) != 3:
        raise ValueError(f"prompted: image_shape={image_shape} must be height, width and channels.")
    mask = np.ones(image_shape, bool)
    if frame is not None:
        check_count("prompted", frame=frame)
        mask[frame:-frame, frame:-frame] = False

    def init(task_params, key):
        del key
        clusters = len(task_params.prototypes) if isinstance(task_params, ClusteredTask) else 1
        return jnp.zeros((clusters, *image_shape))

    def loss(params, task_params, batch, key):
        del key
        nearest = jnp.zeros(len(batch.inputs), int)
        if isinstance(task_params, ClusteredTask):
            nearest = _nearest(features, batch.inputs, task_params.prototypes)
            _check_prompts(params, len(task_params.prototypes))
        logits = predict(batch.inputs + jnp.where(mask[None], params, 0)[nearest])
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
        return value, Metrics((jnp.argmax(logits, -1) == batch.labels).astype(value.dtype).mean())

    return TaskFamily(
        sample=family.sample,
        init=init,
        batch=lambda data, task_params, key: family.batch(data, _of_family(task_params), key),
        loss=loss,
        normalise=lambda loss, task_params: family.normalise(loss, _of_family(task_params)),
    )


@checked
def visual_prompts(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 8,
    batch_size: int | None = None,
    num_tasks: int = 6,
    tasks_at_once: int | None = None,
    loop: Loop = "scan",
) -> MetaLearner:
    """A meta-prompt by Reptile, copied to every cluster of a new task and tuned there.

    Args:
        family: made by `prompted`.
        inner_opt: any optax optimizer; Adam is the paper's in meta-training.
        num_steps: inner steps K. Static.
        batch_size: as in `metaopt.algorithms.reptile`. Static.
        num_tasks: source tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        loop: as in `metaopt.unroll.unroll`. Static.

    Returns:
        A learner; `theta` is one prompt, [1, *image_shape], and adapted parameters are one per
        prototype if `task_params` is a `ClusteredTask`.

    Raises:
        ValueError: as `metaopt.algorithms.reptile`.
    """
    learner = reptile(
        family,
        inner_opt,
        num_steps=num_steps,
        batch_size=batch_size,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        loop=loop,
    )

    def adapt(theta, task_params, support, key):
        if isinstance(task_params, ClusteredTask):
            theta = jnp.repeat(theta, len(task_params.prototypes), axis=0)
        return learner.adapt(theta, task_params, support, key)

    return learner._replace(adapt=adapt)


@checked
def feature_clusters(features: Float[Array, "n features"], *, threshold: Scalar) -> FeatureClusters:
    """Agglomerative clusters: the two nearest are joined while they are nearer than a threshold.

    Host-side, by scikit-learn, with memory for all pairs: the public code takes a thousand
    examples.

    Args:
        features: of a frozen model.
        threshold: the least mean Euclidean distance between members of different clusters, in
            units of the features.

    Returns:
        See `FeatureClusters`.

    Raises:
        ValueError: if `threshold` is not positive or features are fewer than two or not finite.
    """
    from sklearn.cluster import AgglomerativeClustering

    check_positive("feature_clusters", threshold=threshold)
    points = np.asarray(features)
    if len(points) < 2 or not np.isfinite(points).all():
        raise ValueError(
            f"feature_clusters: features of shape {points.shape} must be at least two, and finite."
        )
    # As many clusters as the threshold leaves.
    settings: dict[str, Any] = {"n_clusters": None, "distance_threshold": float(threshold)}
    found = AgglomerativeClustering(linkage="average", **settings).fit(points)
    means = [points[found.labels_ == k].mean(axis=0) for k in range(found.n_clusters_)]
    return FeatureClusters(jnp.asarray(found.labels_), jnp.asarray(np.stack(means), points.dtype))


def _of_family(task_params: Any) -> TaskParams:
    return task_params.task if isinstance(task_params, ClusteredTask) else task_params


def _nearest(features, images, prototypes) -> Int[Array, " n"]:
    """The cluster of every image."""
    if features is None:
        raise ValueError(
            "prompted: features is None, but a ClusteredTask is told apart by features; pass "
            "those of the frozen model."
        )
    difference = features(images)[:, None] - prototypes[None]
    return jnp.argmin(jnp.sum(difference**2, axis=-1), axis=1)


def _check_prompts(params, num_clusters: int) -> None:
    if len(params) != num_clusters:
        raise ValueError(
            f"prompted: params are {len(params)} prompts for {num_clusters} prototypes; repeat "
            "one as visual_prompts does."
        )
