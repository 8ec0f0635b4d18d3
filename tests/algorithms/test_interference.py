import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, tasks
from metaopt.algorithms import anil, interference, online, through_stream
from tests.helpers import central_differences, ravel, relative_error

RATE = 0.05
SIDES = tasks.episodes(())


def small(**settings):
    """Two functions in two batches each."""
    sizes = {"num_functions": 2, "num_batches": 2, "batch_size": 3, "num_queries": 2}
    return tasks.sinusoid_stream(hidden=(4,), activation="tanh", **{**sizes, **settings})


def theta_of(family):
    return family.init(family.sample(jax.random.key(0)), jax.random.key(1))


def test_the_head_takes_one_step_of_descent_per_batch(x64):
    family = small()
    theta, task = theta_of(family), family.sample(jax.random.key(2))
    stream = family.batch(SIDES.inner, task, jax.random.key(3))
    adapt = jax.jit(through_stream(online(family, optax.sgd(RATE))))
    params = adapt(theta, task, stream, jax.random.key(4))

    body, head = jax.tree.map(np.asarray, theta)
    inputs, labels = np.asarray(stream.inputs), np.asarray(stream.labels)
    w, b = head["w"], head["b"]
    for x, y in zip(inputs, labels, strict=True):
        features = np.tanh(x @ body["w"] + body["b"])
        residual = features @ w + b - y
        w = w - RATE * 2 * features.T @ residual / len(x)
        b = b - RATE * 2 * residual.mean(axis=0)
    np.testing.assert_allclose(params[1]["w"], w, rtol=1e-10)
    np.testing.assert_allclose(params[1]["b"], b, rtol=1e-10)
    np.testing.assert_array_equal(params[0]["w"], body["w"])


@pytest.mark.parametrize("gradient", ["reverse", "mixed"])
def test_agrees_with_central_differences(x64, gradient):
    family = small()
    theta = theta_of(family)
    learner = interference(family, optax.sgd(RATE), num_tasks=2, gradient=gradient)

    @jax.jit
    def estimate(theta):
        return learner.estimator.estimate(theta, (), SIDES, jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    assert relative_error(ravel(estimate(theta).grad), differences) < 1e-6


def test_a_stream_of_one_batch_is_anil_with_one_step(x64):
    def loss(params, shift, batch, key):
        x, y = batch
        return jnp.mean((jnp.tanh(x * params[0]) * params[1] - y - shift) ** 2), ()

    def batch(data, shift, key):
        return data

    family = core.TaskFamily(
        sample=lambda key: jax.random.normal(key, ()),
        init=lambda shift, key: (jnp.array(0.4), jnp.array(-0.6)),
        batch=batch,
        loss=loss,
    )
    x, y = jnp.array([0.3, 1.0, -0.5]), jnp.array([1.0, 0.2, -0.7])
    opt, theta, key = optax.adam(RATE), (jnp.array(0.4), jnp.array(-0.6)), jax.random.key(0)

    def meta_grad(learner, support, key):
        data = core.Split(support, (x[:2], y[:2]))
        return jax.jit(learner.estimator.estimate)(theta, (), data, key)[0].grad

    streamed = meta_grad(interference(family, opt, num_tasks=3), (x[None], y[None]), key)
    whole = anil(family, opt, num_steps=1, num_tasks=3)
    whole = meta_grad(whole, (x, y), jax.random.clone(key))
    np.testing.assert_allclose(ravel(streamed), ravel(whole), rtol=1e-10)


def test_bad_settings_are_refused():
    nothing = interference(small(), optax.sgd(RATE), head=lambda params: False)
    with pytest.raises(ValueError, match="head= marks nothing that learns"):
        jax.eval_shape(nothing.estimator.estimate, theta_of(small()), (), SIDES, jax.random.key(0))
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1"):
        interference(small(), optax.sgd(RATE), num_tasks=0)
    with pytest.raises(ValueError, match="gradient='third' is unknown"):
        interference(small(), optax.sgd(RATE), gradient="third")
