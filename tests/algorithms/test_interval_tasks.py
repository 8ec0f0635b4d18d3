import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from metaopt import tasks
from metaopt.algorithms import (
    BoundedTask,
    BoxedInputs,
    interval_bounds,
    interval_maml,
    interval_tasks,
    mix_bounds,
)
from tests.algorithms.embeddings import QUERIES, SHOTS, WAYS, cross_entropy, init, pool
from tests.helpers import central_differences, relative_error


def bounds(body, inputs, *, eps):
    return interval_bounds([{"w": body, "b": jnp.full(5, 0.1)}], inputs, eps=eps)


def above(body, hidden):
    return jnp.sin(hidden @ body.T)


network = mix_bounds(bounds, above)
EPS = 0.3


def plain_family():
    """3-way 2-shot, whose network has two layers with one matrix."""
    return tasks.few_shot(
        init=lambda key: {"body": init(key), "head": jnp.eye(4, WAYS)},
        apply=lambda params, inputs: network(params["body"], inputs) @ params["head"],
        pool_shape=pool().outer.pool.inputs.shape,
        num_ways=WAYS,
        num_shots=SHOTS,
        num_queries=QUERIES,
    )


def settled(share, upper):
    """A task with given shares and sides."""
    task = plain_family().sample(jax.random.key(2))
    return BoundedTask(task, jnp.asarray(share, float), jnp.asarray(upper))


def losses_of(made, task, params):
    """The loss of a query set, interpolated and plain, and the set."""
    query = made.batch(pool().outer, task, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1))
    plain = plain_family().loss(params, task.task, query, keys[0])[0]
    return made.loss(params, task, query, keys[1])[0], plain, query


def test_losses_of_interpolated_classes_by_hand(x64):
    params = plain_family().init((), jax.random.key(1))
    task = settled([0.2, 0.7, 1.0], [True, False, True])
    made = interval_tasks(plain_family(), num_classes=WAYS, eps=EPS)
    loss, plain, query = jax.jit(lambda params: losses_of(made, task, params))(params)

    body, head = (np.asarray(params[k]) for k in ("body", "head"))
    labels = np.asarray(query.labels)
    flat = np.asarray(query.inputs).reshape(len(labels), -1)
    middle, radius = flat @ body + 0.1, EPS * np.abs(body).sum(0)
    upper, centre, lower = (np.maximum(middle + s * radius, 0) for s in (1, 0, -1))
    hidden = np.where((labels == 1)[:, None], lower, upper)
    share = np.array([0.2, 0.7, 1.0])[labels][:, None]
    moved = (1 - share) * centre + share * hidden
    values = [cross_entropy(np.sin(x @ body.T) @ head, labels) for x in (centre, moved)]
    np.testing.assert_allclose(plain, values[0], rtol=1e-10)
    np.testing.assert_allclose(loss, np.mean(values), rtol=1e-10)
    assert abs(values[1] - values[0]) > 1e-2


def test_shares_of_zero_and_boxes_without_volume_are_the_identity(x64):
    params = plain_family().init((), jax.random.key(1))
    sides = [True, False, True]

    @jax.jit
    def losses(params):
        moved = interval_tasks(plain_family(), num_classes=WAYS, eps=EPS)
        flat = interval_tasks(plain_family(), num_classes=WAYS, eps=0.0)
        return [
            losses_of(moved, settled([0, 0, 0], sides), params)[:2],
            losses_of(flat, settled([0.3, 1, 0.5], sides), params)[:2],
        ]

    for loss, plain in losses(params):
        np.testing.assert_allclose(loss, plain, rtol=1e-12)


def test_interpolated_features_lie_between_their_bounds(x64):
    inputs = jax.random.normal(jax.random.key(0), (40, 2, 2, 1))
    body, share = init(jax.random.key(1)), jnp.linspace(0, 1, 40)
    found = bounds(body, inputs, eps=EPS)
    through = mix_bounds(bounds, lambda body, hidden: hidden)
    for side in (True, False):
        hidden = through(body, BoxedInputs(inputs, share, jnp.full(40, side), EPS))
        assert np.all(hidden <= found.upper + 1e-12)
        assert np.all(hidden >= found.lower - 1e-12)
        end = found.upper if side else found.lower
        np.testing.assert_allclose(hidden[-1], end[-1], rtol=1e-12)
        np.testing.assert_allclose(hidden[0], found.centre[0], rtol=1e-12)


def test_every_class_draws_its_share_and_side_as_stated():
    made = interval_tasks(plain_family(), num_classes=WAYS, concentration=2.0, probability=0.6)
    task = jax.jit(jax.vmap(made.sample))(jax.random.split(jax.random.key(0), 1500))
    share, upper = np.asarray(task.share), np.asarray(task.upper)
    moved = share[:, 0] > 0
    assert np.all((share > 0) == moved[:, None])  # All classes or none.
    assert abs(moved.sum() - 0.6 * 1500) < 4 * np.sqrt(1500 * 0.24)
    assert scipy.stats.kstest(share[moved].ravel(), scipy.stats.beta(2, 2).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(share[moved].ravel(), scipy.stats.beta(2.5, 2).cdf).pvalue < 1e-3
    assert abs(upper.mean() - 0.5) < 4 * 0.5 / np.sqrt(upper.size)
    # Classes are drawn one by one.
    assert abs(np.corrcoef(share[moved].T)[0, 1]) < 4 / np.sqrt(moved.sum())


def test_the_meta_gradient_through_interpolated_tasks_agrees_with_central_differences(x64):
    made = interval_tasks(plain_family(), num_classes=WAYS, eps=EPS, probability=1.0)
    learner = interval_maml(
        made,
        optax.sgd(0.05),
        lambda params, inputs, *, eps: bounds(params["body"], inputs, eps=eps),
        eps=EPS,
        detach=False,
        num_steps=2,
        num_tasks=1,
    )
    theta = learner.init(jax.random.key(0))

    @jax.jit
    def estimate(theta):
        return learner.estimator.estimate(theta, (), pool(), jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta, step=1e-6)
    assert relative_error(estimate(theta).grad, differences) < 1e-6


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 1"):
        interval_tasks(plain_family(), num_classes=0)
    with pytest.raises(ValueError, match="concentration must be positive"):
        interval_tasks(plain_family(), num_classes=WAYS, concentration=0.0)
    made = interval_tasks(tasks.sinusoid_regression(), num_classes=1)
    task = made.sample(jax.random.key(0))
    batch = made.batch((), task, jax.random.key(1))
    with pytest.raises(ValueError, match="labels are float32"):
        made.loss(made.init(task, jax.random.key(2)), task, batch, jax.random.key(3))
