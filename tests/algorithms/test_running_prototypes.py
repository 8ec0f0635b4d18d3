import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import algorithms, data, tasks

SHAPE = (6, 4, 3)


def embed(body, inputs):
    return jnp.tanh(inputs @ body)


def family(ways, shots):
    return tasks.few_shot_embedding(
        lambda key: jax.random.normal(key, (3, 5)),
        embed,
        pool_shape=SHAPE,
        num_ways=ways,
        num_shots=shots,
        num_queries=2,
    )


def test_after_a_stream_they_are_the_class_means_of_all_its_examples(x64):
    body = jax.random.normal(jax.random.key(0), (3, 5))
    inputs = jax.random.normal(jax.random.key(1), (3, 4, 3))
    labels = jnp.array([[0, 1, 1, 0], [3, 1, 3, 3], [0, 0, 3, 1]])
    learner = algorithms.running_prototypes(family(4, 1), embed)
    adapt = jax.jit(algorithms.through_stream(learner))
    params = adapt(body, (), data.Pool(inputs, labels), jax.random.key(2))
    features = np.tanh(np.asarray(inputs).reshape(-1, 3) @ np.asarray(body))
    flat = np.asarray(labels).ravel()
    for label in (0, 1, 3):
        mean = features[flat == label].mean(axis=0)
        np.testing.assert_allclose(params.head.w[:, label], 2 * mean, rtol=1e-10)
        np.testing.assert_allclose(params.head.b[label], -mean @ mean, rtol=1e-10)
    logits = features @ np.asarray(params.head.w) + np.asarray(params.head.b)
    assert (logits.argmax(axis=1) != 2).all()  # There was no example of it.


def test_new_classes_cost_no_accuracy_and_memory_is_that_of_the_means(x64):
    plain, sides = family(4, 2), tasks.episodes(data.ClassPool(jnp.asarray(POOL)))
    continual = tasks.few_shot_continual(plain, num_ways=2, num_sets=2)
    learner = algorithms.running_prototypes(continual, embed)
    at_once = algorithms.prototypes(plain, embed)
    body, key = jax.random.normal(jax.random.key(0), (3, 5)), jax.random.key(1)

    @jax.jit
    def both(body, key):
        pairs = (plain, at_once.adapt), (continual, algorithms.through_stream(learner))
        return [
            algorithms.few_shot_scores(of, adapt, num_tasks=3)(body, sides, jax.random.clone(key))
            for of, adapt in pairs
        ]

    scores = both(body, key)
    np.testing.assert_allclose(scores[1].loss, scores[0].loss, rtol=1e-10)

    stream = data.Pool(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4), jnp.int32))
    ratio = algorithms.memory_ratio(learner, body, stream)
    assert ratio == (4 * 5 + 4) * 8 / (24 * 8 + 8 * 4)


POOL = np.random.default_rng(0).normal(size=SHAPE)


def test_families_without_a_head_are_refused():
    with pytest.raises(ValueError, match="running_prototypes: the family's params are"):
        algorithms.running_prototypes(tasks.quadratic(dim=2), embed)
