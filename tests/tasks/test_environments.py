import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from tests.helpers import standard_errors

SHAPE = (3, 6, 2)


def family(**settings):
    """A linear map from two inputs to one output."""
    return tasks.environments(
        lambda key: jax.random.normal(key, (2, 1)),
        lambda params, inputs: inputs @ params,
        pool_shape=SHAPE,
        **{"num_shots": 2, "num_queries": 3, **settings},
    )


def pool():
    """Inputs whose first entry is the environment, and whose second one is the point."""
    environment, point = np.meshgrid(np.arange(3.0), np.arange(6.0), indexing="ij")
    inputs = jnp.asarray(np.stack([environment, point], axis=-1), jnp.float32)
    return tasks.EnvironmentPool(inputs, inputs.sum(-1, keepdims=True), jnp.zeros((3, 1)))


@pytest.mark.compiles
def test_support_and_query_are_different_points_of_one_environment():
    sides, tested = tasks.episodes(pool()), family()

    @jax.jit
    def draw(key):
        task = tested.sample(key)
        key = jax.random.key(0)
        return task, tested.batch(sides.inner, task, key), tested.batch(sides.outer, task, key)

    draws, support, query = jax.vmap(draw)(jax.random.split(jax.random.key(1), 600))
    both = np.concatenate([support.inputs, query.inputs], axis=1)
    assert support.inputs.shape == (600, 2, 2)
    assert query.labels.shape == (600, 3, 1)
    assert (both[:, :, 0] == np.asarray(draws.environment)[:, None]).all()
    assert all(len(set(points)) == 5 for points in both[:, :, 1])
    np.testing.assert_array_equal(np.asarray(query.inputs).sum(-1), query.labels[..., 0])

    environments = np.asarray(draws.environment)[:, None] == np.arange(3)
    assert standard_errors(environments, np.full(3, 1 / 3)) < 4
    assert standard_errors(environments, [0.5, 0.25, 0.25]) > 4
    first = np.asarray(support.inputs)[:, 0, 1][:, None] == np.arange(6)
    assert standard_errors(first, np.full(6, 1 / 6)) < 4


def test_the_loss_is_the_mean_squared_error(x64):
    params, rng = jnp.array([[2.0], [-1.0]]), np.random.default_rng(0)
    inputs, labels = rng.normal(size=(4, 2)), rng.normal(size=(4, 1))
    batch = data.Pool(jnp.asarray(inputs), jnp.asarray(labels))
    loss, aux = family().loss(params, (), batch, jax.random.key(0))
    expected = sum((2 * x[0] - x[1] - y[0]) ** 2 for x, y in zip(inputs, labels, strict=True)) / 4
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert aux == ()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_shots=0"):
        family(num_shots=0)
    with pytest.raises(ValueError, match="with at least num_shots . num_queries=7 points"):
        family(num_shots=4)
    task = family().sample(jax.random.key(0))
    with pytest.raises(ValueError, match="data is a EnvironmentPool; pass metaopt.tasks.episodes"):
        family().batch(pool(), task, jax.random.key(0))
    other = tasks.episodes(jax.tree.map(lambda x: x[:2], pool())).inner
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 6, 2\)"):
        family().batch(other, task, jax.random.key(0))
