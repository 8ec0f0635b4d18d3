from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, estimators, tasks
from metaopt.algorithms import few_shot_scores, maml, reptile
from metaopt.algorithms._learner import sample_episode
from tests.algorithms.small_network import DATA, small_network, small_params
from tests.algorithms.test_maml import CENTRE, CURVATURE, RATE, SHIFTS, parabolas
from tests.helpers import relative_error, standard_errors

THETA = {"p": np.array([0.3, -0.7])}


def test_the_pseudo_gradient_agrees_with_the_closed_form_of_parabolas(x64):
    estimator = reptile(parabolas(), optax.sgd(RATE), num_steps=3, num_tasks=4).estimator
    estimate, _ = jax.jit(estimator.estimate)(THETA, (), SHIFTS, jax.random.key(3))

    shrink = 1 - RATE * CURVATURE
    minimum = CENTRE + SHIFTS.inner
    start = np.asarray(THETA["p"])
    np.testing.assert_allclose(estimate.grad["p"], (1 - shrink**3) * (start - minimum), rtol=1e-10)
    last = shrink**2 * (start - minimum)
    np.testing.assert_allclose(estimate.loss, 0.5 * np.sum(CURVATURE * last**2), rtol=1e-10)


def test_one_step_is_joint_training(x64):
    """The pseudo-gradient is the rate times the mean gradient of the same tasks and batches."""
    family = tasks.quadratic(dim=2)._replace(normalise=core.keep_finite)
    theta = jnp.array([0.3, -0.2])
    estimator = reptile(family, optax.sgd(RATE), num_steps=1, num_tasks=3).estimator

    def joint(theta, key):
        def loss(theta, key):
            key_episode, _ = jax.random.split(key)
            task_params, support, _ = sample_episode(family, (), key_episode)
            return family.loss(theta, task_params, support, jax.random.key(0))[0]

        losses, grads = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(
            theta, jax.random.split(key, 3)
        )
        return losses.mean(), jax.tree.map(lambda g: RATE * g.mean(0), grads)

    estimate, _ = jax.jit(estimator.estimate)(theta, (), (), jax.random.key(5))
    loss, grad = jax.jit(joint)(theta, jax.random.key(5))
    assert relative_error(estimate.grad, grad) < 1e-12
    np.testing.assert_allclose(estimate.loss, loss, rtol=1e-12)


def test_an_outer_step_of_size_one_goes_to_the_mean_of_the_adapted_parameters(x64):
    family = tasks.quadratic(dim=2)
    learner = reptile(family, optax.adam(RATE, b1=0.0), num_steps=3, num_tasks=2)
    theta = jnp.array([0.3, -0.2])

    @jax.jit
    def both(key):
        estimate, _ = learner.estimator.estimate(theta, (), (), key)
        adapted = []
        for one in jax.random.split(jax.random.clone(key), 2):
            key_episode, key_adapt = jax.random.split(one)
            task_params, support, _ = sample_episode(family, (), key_episode)
            adapted.append(learner.adapt(theta, task_params, support, key_adapt))
        return theta - estimate.grad, sum(adapted) / 2

    moved, mean = both(jax.random.key(1))
    np.testing.assert_allclose(moved, mean, rtol=1e-12)


def test_on_a_game_the_pseudo_gradient_is_where_both_players_go_in_closed_form(x64):
    """FIGR, arXiv:1901.02199: Reptile on a pair, of which one ascends what the other descends.

    L(x, y) = ½ x² + b x y − ½ y² − s y for a task s, so that both move along A (x, y) + (0, s).
    """
    slope, rate, num_steps = 0.7, 0.1, 4
    shifts = jnp.array([0.4, -1.1])

    def loss(params, task_params, batch, key):
        x, y = params["generator"], params["discriminator"]
        return 0.5 * x**2 + slope * x * y - 0.5 * y**2 - batch * y, ()

    family = core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: {"generator": jnp.zeros(()), "discriminator": jnp.zeros(())},
        batch=lambda data, task_params, key: data,
        loss=loss,
    )
    players = {"generator": optax.sgd(rate), "discriminator": optax.sgd(-rate)}
    inner_opt = optax.partition(players, {name: name for name in players})
    estimator = reptile(family, inner_opt, num_steps=num_steps, num_tasks=1).estimator
    theta = {"generator": jnp.array(0.3), "discriminator": jnp.array(-0.8)}
    run = jax.jit(estimator.estimate)
    for shift in shifts:
        estimate, _ = run(theta, (), shift, jax.random.key(0))
        start = z = np.array([0.3, -0.8])
        for _ in range(num_steps):
            z = z - rate * (np.array([[1, slope], [-slope, 1]]) @ z + np.array([0, shift]))
        found = [estimate.grad["generator"], estimate.grad["discriminator"]]
        np.testing.assert_allclose(found, start - z, rtol=1e-10)


def rows_family() -> core.TaskFamily:
    """L = ½ mean (p − row)²: a batch is rows, and the gradient of one is p minus their mean."""
    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros(()),
        batch=lambda data, task_params, key: data,
        loss=lambda params, task_params, batch, key: (0.5 * jnp.mean((params - batch) ** 2), ()),
    )


def test_batches_of_the_support_set_are_drawn_uniformly_and_without_replacement():
    rows = jnp.array([0.0, 1.0, 3.0, 10.0])
    learner = reptile(rows_family(), optax.sgd(1.0), num_steps=1, batch_size=3)
    keys = jax.random.split(jax.random.key(0), 4_000)
    drawn = jax.jit(jax.vmap(lambda key: learner.adapt(jnp.zeros(()), (), rows, key)))(keys)
    means = [4 / 3, 11 / 3, 13 / 3, 14 / 3]  # All sets of three different rows.
    index = np.argmin(np.abs(np.asarray(drawn)[:, None] - means), axis=1)
    np.testing.assert_allclose(np.asarray(means)[index], drawn, rtol=1e-5)
    counts = np.eye(4)[index]
    assert standard_errors(counts, np.full(4, 0.25)) < 4.5
    assert standard_errors(counts, np.array([0.3, 0.25, 0.25, 0.2])) > 4.5


def test_steps_take_different_batches():
    rows = jnp.arange(8.0)
    learner = reptile(rows_family(), optax.sgd(0.5), num_steps=2, batch_size=1)
    keys = jax.random.split(jax.random.key(0), 64)
    ends = jax.jit(jax.vmap(lambda key: learner.adapt(jnp.zeros(()), (), rows, key)))(keys)
    same_rows = np.asarray(rows) * 0.75
    apart = np.abs(np.asarray(ends)[:, None] - same_rows).min(axis=1) > 1e-6
    assert apart.mean() > 0.5


def test_a_task_that_diverges_counts_as_zero_and_is_reported():
    family = rows_family()._replace(
        sample=lambda key: jax.random.bernoulli(key),
        loss=lambda params, diverges, batch, key: (
            params * jnp.where(diverges, jnp.inf, 1.0),
            (),
        ),
    )
    estimator = reptile(family, optax.sgd(1.0), num_steps=1, num_tasks=64).estimator
    estimate, _ = estimator.estimate(jnp.ones(()), (), jnp.zeros(1), jax.random.key(0))
    assert 0 < estimate.info.nonfinite < 1
    np.testing.assert_allclose(estimate.grad, 1 - estimate.info.nonfinite, rtol=1e-6)


def test_both_first_order_switches_agree(x64):
    """Inner gradients as constants, and the query gradient where adaptation ends, are one."""
    family, theta = small_network(), small_params()
    learner = maml(family, optax.sgd(0.05), num_steps=3, num_tasks=1, gradient="first_order")
    exact = maml(family, optax.sgd(0.05), num_steps=3, num_tasks=1)

    @jax.jit
    def grads(theta):
        params = learner.adapt(theta, (), DATA.inner, jax.random.key(0))
        found = [x.estimator.estimate(theta, (), DATA, jax.random.key(1)) for x in (learner, exact)]
        query_loss = lambda params: family.loss(params, (), DATA.outer, jax.random.key(0))[0]  # noqa: E731
        return jax.grad(query_loss)(params), *(estimate.grad for estimate, _ in found)

    at_the_end, first, second = grads(theta)
    assert relative_error(first, at_the_end) < 1e-12
    assert relative_error(first, second) > 1e-2


def test_first_order_maml_refuses_a_leaf_that_it_cannot_reach():
    class Inner(NamedTuple):
        x: jax.Array

    def loss(params, task_params, batch, key):
        weight = jnp.exp(params["weight"]) if isinstance(batch, Inner) else 1.0
        return weight * jnp.sum((params["p"] - batch[0]) ** 2), ()

    family = core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: {"p": jnp.zeros(2), "weight": jnp.zeros(())},
        batch=lambda data, task_params, key: data,
        loss=loss,
    )
    data = core.Split(Inner(jnp.ones(2)), (jnp.ones(2),))
    theta = {"p": jnp.zeros(2), "weight": jnp.zeros(())}
    first_order = maml(family, optax.sgd(0.1), gradient="first_order").estimator
    with pytest.raises(ValueError, match=r"theta\['weight'\] without any gradient"):
        first_order.estimate(theta, (), data, jax.random.key(0))
    second_order = maml(family, optax.sgd(0.1), num_tasks=1).estimator
    estimate, _ = second_order.estimate(theta, (), data, jax.random.key(0))
    assert abs(float(estimate.grad["weight"])) > 1e-2


@pytest.mark.slow
def test_more_adaptation_helps_after_training_on_sinusoids():
    family = tasks.sinusoid_regression(activation="tanh")._replace(normalise=core.keep_finite)
    learner = reptile(family, optax.sgd(0.02), num_steps=8, num_tasks=8)
    outer_opt = optax.adam(3e-3)

    @jax.jit
    def train(key):
        theta = learner.init(jax.random.key(0))

        def one(carry, key):
            theta, opt_state = carry
            estimate, _ = learner.estimator.estimate(theta, (), (), key)
            updates, opt_state = outer_opt.update(estimate.grad, opt_state)
            return (optax.apply_updates(theta, updates), opt_state), None

        return jax.lax.scan(one, (theta, outer_opt.init(theta)), jax.random.split(key, 600))[0][0]

    scores = jax.jit(few_shot_scores(family, learner.adapt, num_tasks=200))
    trained = scores(train(jax.random.key(1)), (), jax.random.key(2)).loss.mean()
    fresh = scores(learner.init(jax.random.key(0)), (), jax.random.key(2)).loss.mean()
    assert trained < 0.7 * fresh


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="reptile: num_steps must be at least 1"):
        reptile(parabolas(), optax.sgd(RATE), num_steps=0)
    with pytest.raises(ValueError, match="reptile: num_tasks must be an integer of at least 1"):
        reptile(parabolas(), optax.sgd(RATE), num_tasks=0)
    with pytest.raises(ValueError, match="reptile: batch_size must be an integer of at least 1"):
        reptile(parabolas(), optax.sgd(RATE), batch_size=0)
    with pytest.raises(ValueError, match="tasks_at_once=2 does not divide"):
        reptile(parabolas(), optax.sgd(RATE), num_tasks=5, tasks_at_once=2)
    learner = reptile(rows_family(), optax.sgd(RATE), batch_size=3)
    with pytest.raises(ValueError, match="batch_size=3 is more than the 2 examples"):
        learner.adapt(jnp.zeros(()), (), jnp.zeros(2), jax.random.key(0))
    with pytest.raises(TypeError, match="reptile: theta is int32"):
        learner.estimator.init(jnp.zeros((), jnp.int32), (), jax.random.key(0))


def test_joint_training_is_what_backpropagation_without_adaptation_gives(x64):
    one_step = reptile(parabolas(), optax.sgd(RATE), num_steps=1, num_tasks=2).estimator
    joint = estimators.backprop(
        lambda theta, data, key: parabolas().loss(theta, CENTRE, data.inner, key)[0], num_tasks=2
    )
    first = one_step.estimate(THETA, (), SHIFTS, jax.random.key(0))[0].grad["p"]
    second = joint.estimate(THETA, (), SHIFTS, jax.random.key(0))[0].grad["p"]
    np.testing.assert_allclose(first, RATE * second, rtol=1e-12)
