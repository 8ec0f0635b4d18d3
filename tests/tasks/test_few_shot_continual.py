import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import algorithms, data, tasks

# An image is its class and the number of the example.
POOL = data.ClassPool(
    jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(7.0), indexing="ij"), axis=-1)
)
SIDES = tasks.episodes(POOL)


def family(ways, shots, queries=2):
    return tasks.few_shot(
        lambda key: {"w": jax.random.normal(key, (2, ways)), "b": jnp.zeros(ways)},
        lambda params, x: x @ params["w"] + params["b"][None],
        pool_shape=POOL.inputs.shape,
        num_ways=ways,
        num_shots=shots,
        num_queries=queries,
    )


def drawn(continual):
    """A task, its stream and its query set."""

    @jax.jit
    def draw(key_task, key_support, key_query):
        task = continual.sample(key_task)
        stream = continual.batch(SIDES.inner, task, key_support)
        return task, stream, continual.batch(SIDES.outer, task, key_query)

    return jax.tree.map(np.asarray, draw(*(jax.random.key(seed) for seed in (3, 4, 5))))


@pytest.mark.parametrize("overwrite", [False, True])
def test_three_sets_with_new_classes_in_each(overwrite):
    continual = tasks.few_shot_continual(family(6, 2), num_ways=2, num_sets=3, overwrite=overwrite)
    task, stream, query = drawn(continual)
    assert stream.inputs.shape == (3, 4, 2)
    for index in range(3):
        first, second = task.classes[2 * index], task.classes[2 * index + 1]
        assert stream.inputs[index, :, 0].tolist() == [first, first, second, second]
        base = 0 if overwrite else 2 * index
        assert stream.labels[index].tolist() == [base, base, base + 1, base + 1]
    assert query.inputs[:, 0].tolist() == np.repeat(task.classes, 2).tolist()
    own = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert query.labels.tolist() == ([0, 0, 1, 1] * 3 if overwrite else own)


def test_three_sets_with_new_samples_of_the_same_classes():
    continual = tasks.few_shot_continual(family(2, 3), num_ways=2, num_sets=3, class_change=3)
    task, stream, query = drawn(continual)
    assert stream.inputs.shape == (3, 2, 2)
    assert (stream.inputs[..., 0] == task.classes).all()
    assert (stream.labels == [0, 1]).all()
    shown = {tuple(x) for x in stream.inputs.reshape(-1, 2)}
    asked = {tuple(x) for x in query.inputs}
    assert len(shown) == 6
    assert not shown & asked


def test_four_sets_whose_classes_change_once():
    continual = tasks.few_shot_continual(family(4, 4), num_ways=2, num_sets=4, class_change=2)
    task, stream, _ = drawn(continual)
    assert stream.inputs.shape == (4, 4, 2)
    groups = [[task.classes[2 * g], task.classes[2 * g + 1]] for g in (0, 0, 1, 1)]
    assert stream.inputs[..., 0].tolist() == [np.repeat(g, 2).tolist() for g in groups]
    assert len({tuple(x) for x in stream.inputs.reshape(-1, 2)}) == 16


def test_one_support_set_scores_like_an_ordinary_episode(x64):
    plain = family(3, 2)
    learner = algorithms.maml(plain, optax.sgd(0.1), num_steps=2)
    theta, key = learner.init(jax.random.key(0)), jax.random.key(1)
    continual = tasks.few_shot_continual(plain, num_ways=3, num_sets=1)
    streamed = algorithms.through_stream(algorithms.continued(learner))

    @jax.jit
    def both(theta, key):
        return [
            algorithms.few_shot_scores(of, adapt, num_tasks=4)(theta, SIDES, jax.random.clone(key))
            for of, adapt in ((plain, learner.adapt), (continual, streamed))
        ]

    scores = both(theta, key)
    np.testing.assert_allclose(scores[1].loss, scores[0].loss, rtol=1e-12)
    np.testing.assert_array_equal(scores[1].aux.accuracy, scores[0].aux.accuracy)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="class_change=2 does not divide num_sets=3"):
        tasks.few_shot_continual(family(2, 1), num_ways=2, num_sets=3, class_change=2)
    with pytest.raises(ValueError, match="num_sets=0"):
        tasks.few_shot_continual(family(2, 1), num_ways=2, num_sets=0)
    with pytest.raises(ValueError, match="has 4 ways and 1 shots; make it with 6 ways"):
        drawn(tasks.few_shot_continual(family(4, 1), num_ways=2, num_sets=3))
    with pytest.raises(ValueError, match="2 ways and 3 shots; make it .* a multiple of 2 shots"):
        drawn(tasks.few_shot_continual(family(2, 3), num_ways=2, num_sets=2, class_change=2))
    with pytest.raises(ValueError, match="data is a ClassPool; pass metaopt.tasks.episodes"):
        tasks.few_shot_continual(family(2, 1), num_ways=2, num_sets=1).batch(POOL, (), None)
