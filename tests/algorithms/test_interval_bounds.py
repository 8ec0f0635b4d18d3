import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import tasks
from metaopt.algorithms import Bounds, interval_bounds, interval_maml, maml
from metaopt.algorithms._interval_bounds import _combine
from tests.helpers import central_differences, relative_error

FAMILY = tasks.sinusoid_regression(hidden=(4, 3), activation="tanh", batch_size=5)


def first_layers(params, inputs, *, eps):
    return interval_bounds(params[:2], inputs, eps=eps, activation=jnp.tanh)


def theta():
    return FAMILY.init(FAMILY.sample(jax.random.key(0)), jax.random.key(1))


def layers():
    keys = jax.random.split(jax.random.key(3), 2)
    return [
        {"w": jax.random.normal(key, shape), "b": 0.1 * jnp.arange(float(shape[1]))}
        for key, shape in zip(keys, ((3, 6), (6, 4)), strict=True)
    ]


def test_a_thousand_perturbations_stay_inside_and_end_points_do_not_bound_them(x64):
    inputs, eps = jax.random.normal(jax.random.key(0), (5, 3)), 0.2
    found = jax.jit(lambda x: interval_bounds(layers(), x, eps=eps))(inputs)
    noise = np.random.default_rng(0).uniform(-eps, eps, size=(1000, 5, 3))

    def features(x):
        for layer in layers():
            x = np.maximum(x @ np.asarray(layer["w"]) + np.asarray(layer["b"]), 0)
        return x

    values = features(np.asarray(inputs) + noise)
    assert np.all(values >= np.asarray(found.lower) - 1e-12)
    assert np.all(values <= np.asarray(found.upper) + 1e-12)
    np.testing.assert_allclose(found.centre, features(np.asarray(inputs)), rtol=1e-12)
    ends = np.stack([features(np.asarray(inputs) + sign * eps) for sign in (-1, 1)])
    assert np.any(values > ends.max(axis=0) + 1e-6)


def test_one_layer_is_bounded_exactly_at_the_corners(x64):
    layer, inputs = layers()[:1], jax.random.normal(jax.random.key(0), (2, 3))
    found = interval_bounds(layer, inputs, eps=0.3, activation=lambda x: x)
    corners = 0.3 * (2 * np.array(np.unravel_index(np.arange(8), (2, 2, 2))).T - 1)
    values = (np.asarray(inputs) + corners[:, None]) @ np.asarray(layer[0]["w"]) + np.asarray(
        layer[0]["b"]
    )
    np.testing.assert_allclose(found.lower, values.min(0), rtol=1e-10)
    np.testing.assert_allclose(found.upper, values.max(0), rtol=1e-10)


def test_boxes_without_volume_are_maml(x64):
    settings = {"num_steps": 2, "num_tasks": 2}
    plain = maml(FAMILY, optax.sgd(0.05), **settings).estimator
    boxed = interval_maml(FAMILY, optax.sgd(0.05), first_layers, eps=0.0, **settings).estimator
    first, second = (
        jax.jit(x.estimate)(theta(), (), (), jax.random.key(2))[0] for x in (plain, boxed)
    )
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-12)
    assert relative_error(second.grad, first.grad) < 1e-10


def test_losses_are_combined_by_the_softmax_of_themselves(x64):
    bounds = Bounds(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.5]]), jnp.array([[3.0, 2.0]]))
    losses = np.array([0.7, 2.0, 0.625])  # (4 + 0) / 2 above, (1 + 0.25) / 2 below
    weights = np.exp(losses / 0.5) / np.exp(losses / 0.5).sum()

    def combine(loss, detach):
        return _combine(loss, bounds, 0.1, 0.5, detach)

    np.testing.assert_allclose(combine(jnp.array(0.7), True), weights @ losses, rtol=1e-12)
    slopes = [float(jax.grad(combine)(jnp.array(0.7), detach)) for detach in (True, False)]
    through = weights[0] * (losses[0] - weights @ losses) / 0.5
    np.testing.assert_allclose(slopes, [weights[0], weights[0] + through], rtol=1e-10)


def test_the_meta_gradient_agrees_with_central_differences(x64):
    learner = interval_maml(
        FAMILY, optax.sgd(0.05), first_layers, eps=0.1, detach=False, num_steps=2, num_tasks=2
    )

    def estimate(theta):
        return learner.estimator.estimate(theta, (), (), jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta())
    assert relative_error(jax.jit(estimate)(theta()).grad, differences) < 1e-6


def test_bad_settings_are_refused():
    make = functools.partial(interval_maml, FAMILY, optax.sgd(0.1), first_layers)
    with pytest.raises(ValueError, match="temperature must be positive"):
        make(temperature=0.0)
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1"):
        make(num_tasks=0)
