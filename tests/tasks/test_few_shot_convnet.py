import jax
import numpy as np
import optax
import pytest

from metaopt import tasks
from metaopt.algorithms import adapt, maml
from metaopt.algorithms._learner import sample_episode
from metaopt.data import ClassPool
from metaopt.tasks import few_shot_convnet, few_shot_mlp, running_statistics
from tests.helpers import central_differences, ravel, relative_error

SHAPE = (3, 5, 7, 6, 2)  # classes, examples, height, width, channels
SIZES: dict = {"num_ways": 3, "num_shots": 2, "num_queries": 3}
SETTINGS: dict = {"channels": (3, 4), **SIZES}


def pools():
    return tasks.episodes(ClassPool(jax.random.normal(jax.random.key(0), SHAPE)))


def start(family):
    """An episode, and parameters none of which is 0 or 1."""
    episode = sample_episode(family, pools(), jax.random.key(1))
    params = family.init(episode.task_params, jax.random.key(2))
    keys = jax.random.split(jax.random.key(3), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    # Variances stay positive.
    jitter = lambda x, key: x + 0.2 * jax.random.uniform(key, x.shape)  # noqa: E731
    return episode, jax.tree.map(jitter, params, keys)


def numpy_features(params, images, statistics_of):
    """The network one image, channel and pixel at a time; returns features and statistics."""
    images, used = np.asarray(images), []
    for index, block in enumerate(params["blocks"]):
        kernel, (n, height, width, _) = np.asarray(block["w"]), images.shape
        out = np.zeros((n, height, width, kernel.shape[-1]))
        for row in range(height):
            for column in range(width):
                for i in range(3):
                    for j in range(3):
                        r, c = row + i - 1, column + j - 1
                        if 0 <= r < height and 0 <= c < width:
                            out[:, row, column] += images[:, r, c] @ kernel[i, j]
        mean, variance = statistics_of(index, out)
        used.append((mean, variance))
        out = np.asarray(block["scale"]) * (out - mean) / np.sqrt(variance + 1e-5)
        out = out + np.asarray(block["shift"])
        images = np.zeros((n, height // 2, width // 2, out.shape[-1]))
        for row in range(height // 2):
            for column in range(width // 2):
                four = out[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                images[:, row, column] = np.maximum(four.max((1, 2)), 0)
    return images.reshape(len(images), -1), used


def own(index, values):
    """Statistics of all images."""
    return values.mean((0, 1, 2)), values.var((0, 1, 2))


def numpy_loss(params, features, labels):
    logits = features @ np.asarray(params["head"]["w"]) + np.asarray(params["head"]["b"])
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), np.asarray(labels)].mean()


@pytest.mark.parametrize("statistics", ["transductive", "support", "running"])
def test_the_loss_is_that_of_a_network_in_loops(x64, statistics):
    family = few_shot_convnet(SHAPE, statistics=statistics, **SETTINGS)
    episode, params = start(family)
    loss = jax.jit(family.loss)

    def actual(batch):
        return loss(params, episode.task_params, batch, jax.random.key(0))[0]

    support, query = episode.support, episode.query
    if statistics == "running":
        known = [(np.asarray(x["mean"]), np.asarray(x["variance"])) for x in params["statistics"]]
        of_support = of_query = lambda index, values: known[index]  # noqa: E731
    else:
        of_support, of_query = own, own
    features, used = numpy_features(params, support.inputs, of_support)
    np.testing.assert_allclose(
        actual(support), numpy_loss(params, features, support.labels), rtol=1e-10
    )
    if statistics == "support":
        of_query = lambda index, values: used[index]  # noqa: E731
    features, _ = numpy_features(params, query.inputs, of_query)
    np.testing.assert_allclose(
        actual(query), numpy_loss(params, features, query.labels), rtol=1e-10
    )


@pytest.mark.parametrize("statistics", ["transductive", "support", "running"])
def test_only_transductive_statistics_let_queries_see_each_other(x64, statistics):
    family = few_shot_convnet(SHAPE, statistics=statistics, **SETTINGS)
    episode, params = start(family)

    @jax.jit
    def losses(query):
        """Of all queries together, and the mean of each one's alone."""

        def loss(query):
            return family.loss(params, episode.task_params, query, jax.random.key(0))[0]

        rows = range(3)
        query = query._replace(inputs=query.inputs[:3], labels=query.labels[:3])
        single = [
            query._replace(inputs=query.inputs[i : i + 1], labels=query.labels[i : i + 1])
            for i in rows
        ]
        return loss(query), sum(loss(one) for one in single) / len(rows)

    together, alone = losses(episode.query)
    if statistics == "transductive":
        assert abs(together - alone) > 1e-2
    else:
        np.testing.assert_allclose(together, alone, rtol=1e-10)


def test_running_statistics_are_means_over_query_sets(x64):
    family = few_shot_convnet(SHAPE, **SETTINGS)
    _, params = start(family)
    key, num_episodes = jax.random.key(5), 3
    measured = jax.jit(running_statistics(family, num_episodes=num_episodes))(params, pools(), key)
    expected = []
    for key_episode in jax.random.split(jax.random.clone(key), num_episodes):
        key_task, key_batch = jax.random.split(key_episode)
        query = family.batch(pools().outer, family.sample(key_task), key_batch)
        expected.append(numpy_features(params, query.inputs, own)[1])
    for index, entry in enumerate(measured["statistics"]):
        mean, variance = (np.mean([e[index][k] for e in expected], 0) for k in range(2))
        np.testing.assert_allclose(entry["mean"], mean, rtol=1e-10)
        np.testing.assert_allclose(entry["variance"], variance, rtol=1e-10)
    assert measured["blocks"] is not None
    with pytest.raises(ValueError, match="params has statistics already"):
        running_statistics(family)(measured, pools(), jax.random.key(6))


@pytest.mark.compiles
def test_adaptation_leaves_running_statistics_alone():
    family = few_shot_convnet(SHAPE, statistics="running", **SETTINGS)
    episode, params = start(family)
    run = jax.jit(adapt(family, optax.sgd(0.1), num_steps=2))
    adapted = run(params, episode.task_params, episode.support, jax.random.key(0))
    np.testing.assert_array_equal(ravel(adapted["statistics"]), ravel(params["statistics"]))
    assert relative_error(adapted["blocks"], params["blocks"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["transductive", "support"])
def test_meta_gradients_agree_with_central_differences(x64, statistics):
    # Without ties and far from kinks at this seed: the network is piecewise smooth.
    shape = (2, 2, 4, 4, 1)
    family = few_shot_convnet(
        shape, num_ways=2, num_queries=1, channels=(2, 2), statistics=statistics
    )
    data = tasks.episodes(ClassPool(jax.random.normal(jax.random.key(0), shape)))
    params = family.init(family.sample(jax.random.key(1)), jax.random.key(2))
    estimator = maml(family, optax.sgd(0.1), num_steps=2, num_tasks=1).estimator

    def estimate(theta):
        return estimator.estimate(theta, (), data, jax.random.key(3))[0]

    grad = jax.jit(lambda theta: estimate(theta).grad)(params)
    differences = central_differences(lambda theta: estimate(theta).loss, params, step=1e-6)
    assert relative_error(grad, differences) < 1e-6


def test_a_perceptron_sees_the_flattened_images(x64):
    family = few_shot_mlp(SHAPE, hidden=(4,), activation="tanh", **SIZES)
    episode, params = start(family)
    x = np.asarray(episode.query.inputs).reshape(9, -1)
    hidden = np.tanh(x @ np.asarray(params[0]["w"]) + np.asarray(params[0]["b"]))
    logits = {"head": params[1]}
    loss, _ = family.loss(params, episode.task_params, episode.query, jax.random.key(0))
    expected = numpy_loss(logits, hidden, episode.query.labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((9, 9, 8, 8), {}, r"is not \(classes, examples, height, width, channels\)"),
        ((9, 9, 8, 8, 1), {"channels": ()}, r"channels=\(\) must hold positive numbers"),
        ((9, 9, 8, 9, 1), {"channels": (2,) * 4}, "4 blocks leave nothing of images of 8 x 9"),
        ((9, 9, 8, 8, 1), {"channels": (2,), "statistics": "batch"}, "statistics='batch' is unk"),
        ((9, 9, 8, 8, 1), {"channels": (2,), "num_ways": 1}, "num_ways=1 is below 2"),
    ],
)
def test_bad_settings_are_refused(shape, settings, message):
    with pytest.raises(ValueError, match=f"few_shot_convnet: .*{message}"):
        few_shot_convnet(shape, num_shots=2, num_queries=2, **{"num_ways": 2, **settings})
    with pytest.raises(ValueError, match=r"few_shot_mlp: hidden=\(0,\) has a width below 1"):
        few_shot_mlp(SHAPE, hidden=(0,))
    family = few_shot_mlp(SHAPE, num_ways=3, num_shots=2, num_queries=3)
    with pytest.raises(ValueError, match="running_statistics: num_episodes=0 is below 1"):
        running_statistics(family, num_episodes=0)
