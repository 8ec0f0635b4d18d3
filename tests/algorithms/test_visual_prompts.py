import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.cluster.hierarchy

from metaopt import data, tasks
from metaopt.algorithms import (
    ClusteredTask,
    feature_clusters,
    few_shot_scores,
    prompted,
    reptile,
    visual_prompts,
)
from tests.algorithms.embeddings import QUERIES, SHAPE, SHOTS, WAYS, cross_entropy
from tests.helpers import central_differences, relative_error

WEIGHTS = np.random.default_rng(0).normal(size=(16, WAYS))
IMAGE = (4, 4, 1)
PROTOTYPES = np.array([[0.5, 0.2, 0.0], [-0.5, 0.1, -0.1]])


def images_pool():
    """Four classes of six images."""
    inputs = jax.random.normal(jax.random.key(0), (*SHAPE[:2], *IMAGE))
    return tasks.episodes(data.ClassPool(inputs))


def predict(images):
    return jnp.tanh(images.reshape(len(images), -1) @ WEIGHTS)


def features(images):
    return images.reshape(len(images), -1)[:, :3]


def base_family():
    return tasks.few_shot(
        lambda key: jnp.zeros(1),
        lambda params, inputs: predict(inputs),
        pool_shape=(*SHAPE[:2], *IMAGE),
        num_ways=WAYS,
        num_shots=SHOTS,
        num_queries=QUERIES,
    )


def family(**settings):
    return prompted(base_family(), predict, image_shape=IMAGE, **settings)


def query_of(task):
    return base_family().batch(images_pool().outer, task, jax.random.key(0))


def drawn_task():
    """Three of the four classes."""
    return base_family().sample(jax.random.key(1))


def numpy_loss(prompts, batch, which):
    inputs = np.asarray(batch.inputs) + np.asarray(prompts)[which]
    return cross_entropy(np.tanh(inputs.reshape(len(inputs), -1) @ WEIGHTS), batch.labels)


def test_a_prompt_of_zero_is_the_frozen_model_the_identity(x64):
    made, query = family(features=features), query_of(drawn_task())
    for task in (drawn_task(), ClusteredTask(drawn_task(), jnp.asarray(PROTOTYPES))):
        prompts = made.init(task, jax.random.key(0))
        loss, aux = made.loss(prompts, task, query, jax.random.key(1))
        expected, metrics = base_family().loss(jnp.zeros(1), drawn_task(), query, jax.random.key(1))
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(aux.accuracy, metrics.accuracy)


def test_every_image_gets_the_prompt_of_its_nearest_prototype_by_hand(x64):
    query = query_of(drawn_task())
    prompts = jax.random.normal(jax.random.key(3), (2, *IMAGE))
    z = np.asarray(query.inputs).reshape(len(query.inputs), -1)[:, :3]
    nearest = np.linalg.norm(z[:, None] - PROTOTYPES, axis=-1).argmin(axis=1)
    assert 0 < nearest.sum() < len(nearest)
    task = ClusteredTask(drawn_task(), jnp.asarray(PROTOTYPES))
    loss, _ = family(features=features).loss(prompts, task, query, jax.random.key(1))
    np.testing.assert_allclose(loss, numpy_loss(prompts, query, nearest), rtol=1e-10)


def test_gradients_reach_the_frame_of_the_prompt_alone_by_hand(x64):
    query, prompts = query_of(drawn_task()), jax.random.normal(jax.random.key(3), (1, *IMAGE))
    made = family(frame=1)

    @jax.jit
    def loss(prompts):
        return made.loss(prompts, drawn_task(), query, jax.random.key(1))[0]

    inside = np.zeros((1, *IMAGE))
    inside[:, 1:-1, 1:-1] = 1
    grad = np.asarray(jax.grad(loss)(prompts))
    assert np.all(grad[inside == 1] == 0)
    assert np.all(grad[inside == 0] != 0)
    expected = numpy_loss(np.asarray(prompts) * (1 - inside), query, np.zeros(9, int))
    np.testing.assert_allclose(loss(prompts), expected, rtol=1e-10)
    assert relative_error(grad, central_differences(loss, prompts)) < 1e-6


def test_one_cluster_is_plain_prompt_tuning(x64):
    made = family(features=features)
    learner = visual_prompts(made, optax.sgd(0.5), num_steps=3)
    theta = 0.1 * jax.random.normal(jax.random.key(3), (1, *IMAGE))
    support = base_family().batch(images_pool().inner, drawn_task(), jax.random.key(0))

    @jax.jit
    def both(theta):
        one = ClusteredTask(drawn_task(), jnp.asarray(PROTOTYPES[:1]))
        tuned = theta
        for _ in range(3):
            grad = jax.grad(
                lambda p: made.loss(p, drawn_task(), support, jax.random.key(1))[0],
            )(tuned)
            tuned = tuned - 0.5 * grad
        return learner.adapt(theta, one, support, jax.random.key(2)), tuned

    found, tuned = both(theta)
    np.testing.assert_allclose(found, tuned, rtol=1e-12)


def test_clusters_are_tuned_apart_from_copies_of_the_meta_prompt(x64):
    """Each as if its images, in their share of the mean, were all there is."""
    made = family(features=features)
    learner = visual_prompts(made, optax.sgd(0.5), num_steps=2)
    theta = 0.1 * jax.random.normal(jax.random.key(3), (1, *IMAGE))
    support = base_family().batch(images_pool().inner, drawn_task(), jax.random.key(0))
    z = np.asarray(features(support.inputs))
    nearest = np.linalg.norm(z[:, None] - PROTOTYPES, axis=-1).argmin(axis=1)

    @jax.jit
    def both(theta):
        task = ClusteredTask(drawn_task(), jnp.asarray(PROTOTYPES))
        found = learner.adapt(theta, task, support, jax.random.key(2))
        alone = []
        for k in range(2):
            rows = np.flatnonzero(nearest == k)
            part = jax.tree.map(lambda x, rows=rows: x[rows], support)
            tuned, share = theta, len(rows) / len(nearest)
            for _ in range(2):
                grad = jax.grad(
                    lambda p, part=part: made.loss(p, drawn_task(), part, jax.random.key(1))[0]
                )(tuned)
                tuned = tuned - 0.5 * share * grad
            alone.append(tuned[0])
        return found, jnp.stack(alone)

    found, alone = both(theta)
    assert 0 < nearest.sum() < len(nearest)
    np.testing.assert_allclose(found, alone, rtol=1e-11)


def test_the_meta_prompt_is_reptiles(x64):
    settings = {"num_steps": 2, "num_tasks": 2}
    theta = 0.1 * jax.random.normal(jax.random.key(3), (1, *IMAGE))
    learners = [make(family(), optax.adam(0.1), **settings) for make in (visual_prompts, reptile)]
    first, second = (
        jax.jit(x.estimator.estimate)(theta, (), images_pool(), jax.random.key(2))[0]
        for x in learners
    )
    np.testing.assert_allclose(first.grad, second.grad, rtol=1e-12)
    scores = few_shot_scores(family(), learners[0].adapt, num_tasks=2)
    assert np.isfinite(scores(theta, images_pool(), jax.random.key(3)).loss).all()


def test_clusters_are_those_of_scipy():
    """Another implementation of average linkage, cut at the same distance."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(20, 3)) + 4 * k for k in range(3)])
    tree = scipy.cluster.hierarchy.linkage(points, "average")
    for threshold, num_clusters in ((0.1, 60), (4.0, 3), (100.0, 1)):
        found = feature_clusters(jnp.asarray(points), threshold=threshold)
        expected = scipy.cluster.hierarchy.fcluster(tree, threshold, "distance")
        labels = np.asarray(found.labels)
        assert len(found.prototypes) == len(set(expected)) == num_clusters
        same = labels[:, None] == labels
        np.testing.assert_array_equal(same, expected[:, None] == expected)
        means = np.stack([points[labels == k].mean(0) for k in range(num_clusters)])
        np.testing.assert_allclose(found.prototypes, means, rtol=1e-5, atol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="must be height, width and channels"):
        prompted(base_family(), predict, image_shape=(4, 4))
    with pytest.raises(ValueError, match=r"image_shape\[1\] must be an integer of at least 1"):
        prompted(base_family(), predict, image_shape=(4, 0, 1))
    with pytest.raises(ValueError, match="frame must be an integer of at least 1"):
        family(frame=0)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        visual_prompts(family(), optax.sgd(0.1), num_steps=0)
    task, query = ClusteredTask(drawn_task(), jnp.asarray(PROTOTYPES)), query_of(drawn_task())
    with pytest.raises(ValueError, match="features is None"):
        family().loss(jnp.zeros((2, *IMAGE)), task, query, jax.random.key(0))
    with pytest.raises(ValueError, match="params are 1 prompts for 2 prototypes"):
        family(features=features).loss(jnp.zeros((1, *IMAGE)), task, query, jax.random.key(0))
    with pytest.raises(ValueError, match="threshold must be positive"):
        feature_clusters(jnp.ones((3, 2)), threshold=0.0)
    with pytest.raises(ValueError, match="at least two, and finite"):
        feature_clusters(jnp.full((3, 2), jnp.nan), threshold=1.0)
    with pytest.raises(ValueError, match="at least two, and finite"):
        feature_clusters(jnp.ones((1, 2)), threshold=1.0)
