import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import LearnedLossTheta, learned_loss, maml
from metaopt.algorithms._learned_loss import entry_loss
from tests.algorithms.tanh_network import (
    FAMILY,
    apply,
    estimate,
    params,
    perturbed,
    support_set,
    task,
)
from tests.helpers import central_differences, ravel, relative_error, standard_errors

SETTINGS = {"num_steps": 2, "num_tasks": 2}


@pytest.mark.compiles
def test_at_first_it_is_maml(x64):
    learner = learned_loss(FAMILY, apply, optax.sgd(0.05), **SETTINGS)
    theta = learner.init(jax.random.key(0))._replace(params=params())
    ours = estimate(learner, theta)
    theirs = estimate(maml(FAMILY, optax.sgd(0.05), **SETTINGS), params())
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert relative_error(ours.grad.params, theirs.grad) < 1e-12
    assert np.any(ours.grad.loss[-1]["w"] != 0)


def by_hand(net, outputs, targets, value):
    """The learned loss, one entry at a time."""
    total = 0.0
    for output, target in zip(np.ravel(outputs), np.ravel(targets), strict=True):
        x = np.array([output, target, np.log(value + np.sqrt(value**2 + 1))])
        for layer in net[:-1]:
            x = x @ np.asarray(layer["w"]) + np.asarray(layer["b"])
            x = x / (1 + np.exp(-x))
        total += (x @ np.asarray(net[-1]["w"]) + np.asarray(net[-1]["b"])).item()
    return total / np.size(outputs)


@pytest.mark.parametrize("kind", ["targets", "classes"])
def test_the_loss_is_a_mean_over_examples_and_outputs(x64, kind):
    init, loss = entry_loss("test", (4, 4))
    net = perturbed(init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    outputs, classes = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    targets = rng.normal(size=(5, 3)) if kind == "targets" else np.eye(3)[classes]
    labels = jnp.asarray(targets if kind == "targets" else classes)
    value = jnp.asarray(1.7)
    ours = loss(net, jnp.asarray(outputs), labels, value)
    np.testing.assert_allclose(ours, by_hand(net, outputs, targets, 1.7), rtol=1e-10)
    if kind == "classes":  # No class is special.
        order = np.array([2, 0, 1])
        renamed = loss(net, jnp.asarray(outputs[:, order]), jnp.argsort(order)[labels], value)
        np.testing.assert_allclose(renamed, ours, rtol=1e-12)


def test_agrees_with_central_differences_once_the_loss_has_an_effect(x64):
    learner = learned_loss(FAMILY, apply, optax.sgd(0.05), hidden=(3,), **SETTINGS)
    theta = perturbed(learner.init(jax.random.key(0)))

    def loss(theta):
        return learner.estimator.estimate(theta, (), (), jax.random.key(14))[0].loss

    assert relative_error(estimate(learner, theta).grad, central_differences(loss, theta)) < 1e-6


@pytest.mark.slow
def test_fresh_starts_are_the_familys_and_the_loss_is_all_that_is_learned(x64):
    learner = learned_loss(FAMILY, apply, optax.sgd(0.0), start="fresh", **SETTINGS)
    theta = learner.init(jax.random.key(0))
    assert theta.params == ()
    adapt = jax.vmap(lambda key: learner.adapt(theta, task(), support_set(), key)[0]["w"])
    found = np.asarray(jax.jit(adapt)(jax.random.split(jax.random.key(0), 500)))
    init = jax.vmap(lambda key: FAMILY.init(task(), key)[0]["w"])
    expected = np.mean(np.asarray(init(jax.random.split(jax.random.key(1), 50_000))) ** 2, axis=0)
    assert standard_errors(found, 0.0) < 4
    assert standard_errors(found**2, expected) < 4
    assert standard_errors(found**2, 1.5 * expected) > 4
    moving = learned_loss(FAMILY, apply, optax.sgd(0.05), start="fresh", **SETTINGS)
    assert np.any(ravel(estimate(moving, theta).grad) != 0)


def test_a_learned_loss_can_replace_a_wrong_one(x64):
    """Of a family whose support loss has no minimum, only the learned term leads anywhere."""

    def wrong(params, task_params, batch, key):
        return -jnp.mean(apply(params, batch.inputs) * 0), ()

    learner = learned_loss(FAMILY._replace(loss=wrong), apply, optax.sgd(0.1), num_steps=1)
    theta = LearnedLossTheta(params(), perturbed(learner.init(jax.random.key(0)).loss))
    support = support_set()
    adapted = learner.adapt(theta, task(), support, jax.random.key(0))

    def extra(params):
        return entry_loss("test", (16, 16))[1](
            theta.loss, apply(params, support.inputs), support.labels, jnp.zeros(())
        )

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params(), jax.grad(extra)(params()))
    assert relative_error(adapted, expected) < 1e-12


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="learned_loss: start='cold' is unknown"):
        learned_loss(FAMILY, apply, optax.sgd(0.1), start="cold")
    with pytest.raises(ValueError, match=r"learned_loss: hidden=\(0,\) has a width below 1"):
        learned_loss(FAMILY, apply, optax.sgd(0.1), hidden=(0,))
    first_order = learned_loss(FAMILY, apply, optax.sgd(0.1), gradient="first_order", **SETTINGS)
    with pytest.raises(ValueError, match="leaves theta.loss.* without any gradient"):
        estimate(first_order, first_order.init(jax.random.key(0)))
