import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from metaopt import core, data, tasks
from metaopt.algorithms import MixedTask, maml, mix_hidden, mlti, prototypes
from metaopt.algorithms._mlti import MixedInputs, interpolate
from tests.algorithms.embeddings import embed, family, init, pool
from tests.helpers import relative_error

hidden_embed = mix_hidden(
    lambda body, inputs: jnp.tanh(inputs.reshape(len(inputs), -1) @ body),
    lambda body, hidden: jnp.sin(hidden @ body.T),
)


def query_loss(made, task, adapt, theta):
    """The query loss of a task after adaptation."""
    keys = jax.random.split(jax.random.key(4), 4)
    support = made.batch(pool().inner, task, keys[0])
    query = made.batch(pool().outer, task, keys[1])
    return made.loss(adapt(theta, task, support, keys[2]), task, query, keys[3])[0]


def test_a_share_of_one_is_the_plain_loss(x64):
    """The same draws: a task mixed with another that has no weight."""
    theta = init(jax.random.key(1))
    for make, where in ((embed, "inputs"), (hidden_embed, "hidden")):
        plain = family(make)
        first, second = plain.sample(jax.random.key(2)), plain.sample(jax.random.key(3))
        adapt = prototypes(plain, make).adapt

        @jax.jit
        def losses(shares, first=first, second=second, plain=plain, adapt=adapt, where=where):
            mixed = mlti(plain, where=where)
            tasks = [MixedTask(first, second, share) for share in shares]
            both = [query_loss(mixed, task, adapt, theta) for task in tasks]
            return [query_loss(plain, first, adapt, theta), *both]

        expected, whole, half = losses(jnp.array([1.0, 0.5]))
        np.testing.assert_allclose(whole, expected, rtol=1e-7)
        assert abs(half - expected) > 1e-3


def test_without_mixing_the_meta_gradient_is_the_plain_one_on_the_first_task():
    pools = core.Split(jnp.array([0.5, 0.0]), jnp.array([-0.5, 1.0]))

    def parabolas(sample):
        return core.TaskFamily(
            sample=sample,
            init=lambda centre, key: jnp.zeros(2),
            batch=lambda data, centre, key: data,
            loss=lambda params, centre, batch, key: (jnp.sum((params - centre - batch) ** 2), ()),
        )

    plain = parabolas(lambda key: jnp.array([1.0, 2.0]))
    both = [
        maml(made, optax.sgd(0.1), num_steps=2, num_tasks=2).estimator
        for made in (plain, mlti(plain, probability=0.0))
    ]
    theta = jnp.array([0.3, -0.2])
    grads = [jax.jit(x.estimate)(theta, (), pools, jax.random.key(0))[0].grad for x in both]
    np.testing.assert_allclose(*grads, rtol=1e-7)


def test_classes_are_paired_in_order_and_support_and_query_share_the_mixture():
    """Each image is its own class number, so mixtures can be read off."""
    numbers = jnp.broadcast_to(jnp.arange(4.0).reshape(4, 1, 1, 1, 1), (4, 6, 2, 2, 1))
    pools = tasks.episodes(data.ClassPool(numbers))
    mixed = mlti(family())
    task = mixed.sample(jax.random.key(0))._replace(share=jnp.array(0.25))
    first, second = np.asarray(task.first.classes), np.asarray(task.second.classes)
    for side in pools:
        batch = mixed.batch(side, task, jax.random.key(1))
        expected = 0.25 * first + 0.75 * second
        np.testing.assert_allclose(batch.inputs[:, 0, 0, 0], expected[batch.labels], rtol=1e-6)


def test_targets_are_mixed_like_inputs():
    first = data.Pool(jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [5.0]]))
    second = data.Pool(jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [1.0]]))
    found = interpolate(first, second, 0.25)
    np.testing.assert_allclose(found.inputs, [[0.25], [1.25]])
    np.testing.assert_allclose(found.labels, [[1.5], [2.0]])


def test_hidden_layers_are_mixed_below_the_head():
    inputs = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1))
    body = init(jax.random.key(1))
    found = hidden_embed(body, MixedInputs(*inputs, 0.3))
    hidden = np.tanh(np.asarray(inputs).reshape(2, 3, 4) @ np.asarray(body))
    expected = np.sin((0.3 * hidden[0] + 0.7 * hidden[1]) @ np.asarray(body).T)
    assert relative_error(found, expected) < 1e-5


def test_shares_follow_a_beta_distribution_where_tasks_are_mixed():
    made = mlti(tasks.quadratic(dim=1), concentration=2.0, probability=0.7)
    keys = jax.random.split(jax.random.key(0), 2000)
    shares = np.asarray(jax.jit(jax.vmap(lambda key: made.sample(key).share))(keys))
    mixed = shares[shares < 1]
    assert abs(len(mixed) - 0.7 * 2000) < 4 * np.sqrt(2000 * 0.21)
    assert scipy.stats.kstest(mixed, scipy.stats.beta(2, 2).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(mixed, scipy.stats.beta(2.5, 2).cdf).pvalue < 1e-3


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="concentration must be positive"):
        mlti(family(), concentration=0.0)
    with pytest.raises(ValueError, match="where='head' is unknown"):
        mlti(family(), where="head")
