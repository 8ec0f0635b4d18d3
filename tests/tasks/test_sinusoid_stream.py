import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors

SIDES = tasks.episodes(())


def test_functions_come_one_after_the_other_and_the_query_set_asks_for_all(x64):
    family = tasks.sinusoid_stream(
        hidden=(3,), num_functions=3, num_ids=4, num_batches=2, batch_size=5, num_queries=6
    )
    task = family.sample(jax.random.key(0))
    draw = jax.jit(lambda side, key: family.batch(side, task, key))
    stream, query = draw(SIDES.inner, jax.random.key(1)), draw(SIDES.outer, jax.random.key(2))
    assert stream.inputs.shape == (6, 5, 5)
    assert stream.labels.shape == (6, 5, 1)
    assert query.inputs.shape == (18, 5)
    ids = np.asarray(task.ids)
    assert len(set(ids)) == 3
    expected = {"stream": np.repeat(ids, 10), "query": np.repeat(ids, 6)}
    for name, batch in (("stream", stream), ("query", query)):
        inputs = np.asarray(batch.inputs).reshape(-1, 5)
        np.testing.assert_array_equal(inputs[:, 1:], np.eye(4)[expected[name]])
        place = [list(ids).index(i) for i in expected[name]]
        amplitude, phase = (np.asarray(x)[place] for x in task.functions)
        sines = amplitude * np.sin(5 * inputs[:, 0] - phase)
        np.testing.assert_allclose(np.asarray(batch.labels).ravel(), sines, rtol=1e-10)
        assert np.abs(inputs[:, 0]).max() <= 1


def test_a_stream_of_one_function_has_any_name():
    family = tasks.sinusoid_stream(hidden=(3,), num_functions=1, num_ids=3)
    ids = jax.jit(jax.vmap(lambda key: family.sample(key).ids[0]))(
        jax.random.split(jax.random.key(0), 900)
    )
    shares = np.asarray(ids)[:, None] == np.arange(3)
    assert standard_errors(shares, np.full(3, 1 / 3)) < 4
    assert standard_errors(shares, [0.4, 0.3, 0.3]) > 4


def test_the_loss_is_the_mean_squared_error_of_the_network(x64):
    family = tasks.sinusoid_stream(hidden=(), num_functions=2, num_queries=4)
    task = family.sample(jax.random.key(0))
    batch = family.batch(SIDES.outer, task, jax.random.key(1))
    params = ({"w": jnp.array([[0.5], [1.0], [-1.0]]), "b": jnp.array([0.25])},)
    expected = np.asarray(batch.inputs) @ np.array([0.5, 1.0, -1.0]) + 0.25
    expected = np.mean((expected - np.asarray(batch.labels)[:, 0]) ** 2)
    loss = family.loss(params, task, batch, jax.random.key(2))[0]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_ids=2 is below num_functions=3"):
        tasks.sinusoid_stream(num_functions=3, num_ids=2)
    with pytest.raises(ValueError, match="num_batches=0"):
        tasks.sinusoid_stream(num_batches=0)
    family = tasks.sinusoid_stream(hidden=(3,))
    with pytest.raises(ValueError, match=r"data is a tuple; pass metaopt.tasks.episodes\(\(\)\)"):
        family.batch((), family.sample(jax.random.key(0)), jax.random.key(1))
