import jax
import numpy as np
import pytest

from metaopt import tasks
from metaopt.algorithms import batch_norm_leaves, maml_plus_plus, step_statistics
from metaopt.data import ClassPool
from metaopt.tasks import few_shot_convnet, running_statistics
from tests.helpers import ravel, relative_error
from tests.tasks.test_few_shot_convnet import numpy_features, own

SHAPE = (4, 5, 3, 2, 1)  # classes, examples, height, width, channels
SIZES: dict = {"num_ways": 2, "num_shots": 2, "num_queries": 3, "channels": (3,)}
SETTINGS: dict = {"per_step": batch_norm_leaves, "learning_rate": 0.3, "num_tasks": 2}


def pools():
    return tasks.episodes(ClassPool(jax.random.normal(jax.random.key(0), SHAPE)))


def theta_of(family, num_steps):
    """Values of normalisation that differ between steps."""
    theta = maml_plus_plus(family, num_steps=num_steps, **SETTINGS).init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 20))
    jitter = lambda x: x + 0.3 * jax.random.uniform(next(keys), x.shape)  # noqa: E731
    return theta._replace(params=jax.tree.map(jitter, theta.params))


def test_marks_normalisation_and_nothing_else():
    family = few_shot_convnet(SHAPE, statistics="running", **SIZES)
    params = family.init(family.sample(jax.random.key(0)), jax.random.key(1))
    marked = batch_norm_leaves(params)
    block = {"w": False, "scale": True, "shift": True}
    known = {"mean": True, "variance": True}
    assert marked == {
        "blocks": (block,),
        "head": {"w": False, "b": False},
        "statistics": (known,),
    }


def test_are_those_of_the_query_sets_after_every_step(x64):
    family, num_episodes = few_shot_convnet(SHAPE, **SIZES), 2
    theta, key = theta_of(family, 2), jax.random.key(5)
    measure = jax.jit(step_statistics(family, num_steps=2, num_episodes=num_episodes))
    measured = measure(theta, pools(), key).params["statistics"]
    adapts = [maml_plus_plus(family, num_steps=k, **SETTINGS).adapt for k in (1, 2)]

    @jax.jit
    def episode(key):
        task_params = family.sample(jax.random.split(key)[0])
        support = family.batch(pools().inner, task_params, jax.random.key(0))
        query = family.batch(pools().outer, task_params, jax.random.key(0))
        key = jax.random.key(0)
        return query, [adapt(theta, task_params, support, key) for adapt in adapts]

    sums = [np.zeros((3, 3)) for _ in ("mean", "variance")]
    for key_episode in jax.random.split(jax.random.clone(key), num_episodes):
        query, adapted = episode(key_episode)
        start = {
            **theta.params,
            "blocks": tuple(
                {"w": block["w"], "scale": block["scale"][0], "shift": block["shift"][0]}
                for block in theta.params["blocks"]
            ),
        }
        for k, params in enumerate([start, *adapted]):
            found = numpy_features(params, query.inputs, own)[1]
            for total, value in zip(sums, [x for pair in found for x in pair], strict=True):
                total[k] += value / num_episodes
    actual = [entry[name] for entry in measured for name in ("mean", "variance")]
    for value, expected in zip(actual, sums, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_before_the_first_step_are_the_running_statistics_and_serve_a_family_with_them():
    family, key = few_shot_convnet(SHAPE, **SIZES), jax.random.key(5)
    theta = theta_of(family, 1)
    first = jax.tree.map(
        lambda marked, x: x[0] if marked else x, batch_norm_leaves(theta.params), theta.params
    )

    @jax.jit
    def both(theta, key):
        plain = running_statistics(family, num_episodes=3)(first, pools(), key)
        found = step_statistics(family, num_steps=1, num_episodes=3)(
            theta, pools(), jax.random.clone(key)
        )
        learner = maml_plus_plus(
            few_shot_convnet(SHAPE, statistics="running", **SIZES), num_steps=1, **SETTINGS
        )
        task_params = family.sample(jax.random.key(6))
        support = family.batch(pools().inner, task_params, jax.random.key(0))
        return plain, found, learner.adapt(found, task_params, support, jax.random.key(0))

    plain, found, adapted = both(theta, key)
    at = lambda k: jax.tree.map(lambda x: x[k], found.params["statistics"])  # noqa: E731
    assert relative_error(at(0), plain["statistics"]) < 1e-5
    assert relative_error(at(1), at(0)) > 1e-2
    # The same numbers, but for what XLA computes twice.
    np.testing.assert_allclose(ravel(adapted["statistics"]), ravel(at(1)), rtol=1e-6)
    assert relative_error(adapted["head"]["w"], theta.params["head"]["w"]) > 1e-3
    with pytest.raises(ValueError, match="step_statistics: theta has statistics already"):
        step_statistics(family, num_steps=1)(found, pools(), jax.random.key(0))


def test_bad_counts_are_refused():
    family = few_shot_convnet(SHAPE, **SIZES)
    with pytest.raises(ValueError, match="step_statistics: num_episodes=0 is below 1"):
        step_statistics(family, num_episodes=0)
