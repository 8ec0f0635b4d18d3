import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import core, tasks
from metaopt.algorithms._learner import sample_episode
from metaopt.data import ClassPool, Pool
from tests.helpers import standard_errors

CLASSES, EXAMPLES, WAYS, SHOTS, QUERIES = 7, 6, 3, 2, 3


def numbered() -> ClassPool:
    """Inputs that say which class (hundreds) and which example they are."""
    classes, examples = np.meshgrid(np.arange(CLASSES), np.arange(EXAMPLES), indexing="ij")
    return ClassPool(jnp.asarray(100.0 * classes + examples)[..., None])


def table(pool_shape=(CLASSES, EXAMPLES, 1), **settings):
    """A classifier whose logits are a row of its parameters per class of the pool."""
    sizes = {"num_ways": WAYS, "num_shots": SHOTS, "num_queries": QUERIES, **settings}
    return tasks.few_shot(
        lambda key: jax.random.normal(key, (CLASSES, WAYS)),
        lambda params, inputs: params[(inputs[:, 0] // 100).astype(int)],
        pool_shape=pool_shape,
        **sizes,
    )


def draws(num):
    """Many episodes at once."""
    family, data = table(), tasks.episodes(numbered())
    keys = jax.random.split(jax.random.key(0), num)
    return jax.jit(jax.vmap(lambda key: sample_episode(family, data, key)))(keys)


def test_support_and_query_are_disjoint_examples_of_the_same_permuted_classes():
    episode = draws(500)
    support, query = (np.asarray(x.inputs)[..., 0] for x in (episode.support, episode.query))
    assert support.shape == (500, WAYS * SHOTS)
    assert query.shape == (500, WAYS * QUERIES)
    classes = np.asarray(episode.task_params.classes)
    assert all(len(set(row)) == WAYS for row in classes)
    np.testing.assert_array_equal(support // 100, classes.repeat(SHOTS, 1))
    np.testing.assert_array_equal(query // 100, classes.repeat(QUERIES, 1))
    both = np.concatenate([support, query], 1)
    assert all(len(set(row)) == both.shape[1] for row in both)
    np.testing.assert_array_equal(episode.support.labels[0], np.arange(WAYS).repeat(SHOTS))
    np.testing.assert_array_equal(episode.query.labels[0], np.arange(WAYS).repeat(QUERIES))


def test_classes_labels_and_examples_are_uniform():
    episode = draws(4000)
    classes = np.asarray(episode.task_params.classes)
    # Whether class c has label l, for all pairs.
    hits = classes[:, :, None] == np.arange(CLASSES)
    assert standard_errors(hits, np.full((WAYS, CLASSES), 1 / CLASSES)) < 4.5
    assert standard_errors(hits[:, :, :1], np.full((WAYS, 1), 1.2 / CLASSES)) > 4.5
    # Whether two classes share a task, and two examples a support set.
    together = hits.any(1)[:, 0] & hits.any(1)[:, 1]
    expected = WAYS * (WAYS - 1) / (CLASSES * (CLASSES - 1))
    assert standard_errors(together, expected) < 4
    assert standard_errors(together, 1.2 * expected) > 4
    examples = np.asarray(episode.task_params.examples)
    chosen = (examples[:, :, :SHOTS, None] == np.arange(EXAMPLES)).any(2)
    share = SHOTS / EXAMPLES
    assert standard_errors(chosen, np.full((WAYS, EXAMPLES), share)) < 4.5
    pair = chosen[:, 0, 0] & chosen[:, 0, 1]
    expected = share * (SHOTS - 1) / (EXAMPLES - 1)
    assert standard_errors(pair, expected) < 4
    assert standard_errors(pair, 1.3 * expected) > 4


@pytest.mark.compiles
def test_the_loss_is_the_cross_entropy_of_the_labels_of_the_episode(x64):
    family, pools = table(), tasks.episodes(numbered())
    task_params = family.sample(jax.random.key(3))
    params = family.init(task_params, jax.random.key(4))
    batch = family.batch(pools.outer, task_params, jax.random.key(5))
    loss, metrics = family.loss(params, task_params, batch, jax.random.key(6))
    rows = np.asarray(params)[np.asarray(task_params.classes)]
    probabilities = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(np.diag(probabilities)).mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics.accuracy, (rows.argmax(1) == np.arange(WAYS)).mean())


def test_all_examples_of_all_classes_make_a_task_too():
    family = table(num_ways=CLASSES, num_shots=1, num_queries=EXAMPLES - 1)
    pools = tasks.episodes(ClassPool(np.asarray(numbered().inputs)))  # arrays of the host, too

    @jax.jit
    def inputs(pools, key):
        task_params = family.sample(key)
        batches = [family.batch(pool, task_params, key) for pool in pools]
        return jnp.concatenate([batch.inputs[:, 0] for batch in batches])

    drawn = np.asarray(inputs(pools, jax.random.key(0)))
    np.testing.assert_array_equal(np.sort(drawn), np.asarray(numbered().inputs).ravel())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_ways": 1}, "num_ways=1 is below 2"),
        ({"num_shots": 0}, "num_shots=0 is below 1"),
        ({"num_queries": 0}, "num_queries=0 is below 1"),
        ({"num_ways": 8}, "at least num_ways=8 classes"),
        ({"num_shots": 4}, "num_shots [+] num_queries=7 examples"),
        ({"pool_shape": (7,)}, r"pool_shape=\(7,\) must begin"),
        ({"pool_shape": (7, 6, 0)}, "has a size below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"few_shot: .*{message}"):
        table(**settings)


def test_other_data_are_refused():
    family = table()
    task_params = family.sample(jax.random.key(0))
    plain = tasks.episodes(numbered().inputs).inner
    for data in (
        numbered(),
        core.Split(numbered(), numbered()),
        Pool(jnp.ones(2), jnp.ones(2)),
        plain,
    ):
        with pytest.raises(ValueError, match=r"pass metaopt\.tasks\.episodes\(pool\)"):
            family.batch(data, task_params, jax.random.key(1))
    short = tasks.episodes(ClassPool(numbered().inputs[:, :5]))
    with pytest.raises(ValueError, match=r"inputs of shape \(7, 5, 1\), but pool_shape=\(7, 6, 1"):
        family.batch(short.inner, task_params, jax.random.key(1))
