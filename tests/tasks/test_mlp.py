import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.data import Pool
from tests.helpers import central_differences, relative_error, standard_errors

ACTIVATIONS = ["elu", "gelu", "identity", "leaky_relu", "relu", "sigmoid", "silu", "softplus",
               "tanh"]  # fmt: skip


def batch():
    key_inputs, key_labels = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(key_inputs, (6, 2, 2))
    return Pool(inputs, jax.random.randint(key_labels, (6,), 0, 3))


@pytest.mark.usefixtures("x64")
def test_loss_and_accuracy_match_numpy():
    family = tasks.mlp((2, 2), 3, hidden=(5, 4), activation="tanh")
    params = family.init((), jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1, params)  # biases away from zero
    x, y = np.asarray(batch().inputs).reshape(6, 4), np.asarray(batch().labels)
    for i, layer in enumerate(params):
        x = x @ np.asarray(layer["w"]) + np.asarray(layer["b"])
        x = np.tanh(x) if i < 2 else x
    log_probability = x - np.log(np.exp(x).sum(1, keepdims=True))
    loss, metrics = family.loss(params, (), batch(), jax.random.key(2))
    np.testing.assert_allclose(loss, -log_probability[np.arange(6), y].mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics.accuracy, (x.argmax(1) == y).mean(), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_matches_central_differences(activation):
    family = tasks.mlp((2, 2), 3, hidden=(2,), activation=activation)
    params = family.init((), jax.random.key(1))
    data, key = batch(), jax.random.key(2)

    def loss(params):
        return family.loss(params, (), data, jax.random.clone(key))[0]

    assert relative_error(jax.grad(loss)(params), central_differences(loss, params)) < 1e-6


def test_without_hidden_layers_it_is_logistic_regression():
    linear, logistic = tasks.mlp((2, 2), 3, hidden=()), tasks.logistic((2, 2), 3)
    (params,) = linear.init((), jax.random.key(1))
    key = jax.random.key(2)
    actual, _ = linear.loss((params,), (), batch(), key)
    expected, _ = logistic.loss(params, (), batch(), jax.random.clone(key))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("tanh", 1.0)])
def test_initial_weights_have_variance_gain_over_fan_in(activation, gain):
    family = tasks.mlp((200,), 50, hidden=(100,), activation=activation)
    hidden, output = family.init((), jax.random.key(0))
    assert standard_errors(np.ravel(hidden["w"]) ** 2, gain / 200) < 4
    assert standard_errors(np.ravel(output["w"]) ** 2, 1 / 100) < 4
    assert standard_errors(np.ravel(output["w"]) ** 2, 1.1 / 100) > 4
    assert not hidden["b"].any()


def test_the_initial_loss_is_about_that_of_a_uniform_guess_and_training_lowers_it():
    # Two points, separable: the loss of gradient descent goes to zero.
    family = tasks.mlp((2,), 2, hidden=(8,), batch_size=4)
    data = Pool(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([0, 1]))

    @jax.jit
    def train(key):
        key_init, key = jax.random.split(key)

        def step(params, key):
            key_batch, key_loss = jax.random.split(key)
            batch = family.batch(data, (), key_batch)
            value_and_grad = jax.value_and_grad(family.loss, has_aux=True)
            (loss, _), grads = value_and_grad(params, (), batch, key_loss)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), loss

        return jax.lax.scan(step, family.init((), key_init), jax.random.split(key, 200))[1]

    losses = train(jax.random.key(0))
    assert losses[0] < 3 * math.log(2)
    assert losses[-10:].max() < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": (0,)}, r"mlp: hidden=\(0,\) has a width below 1; use positive widths."),
        ({"activation": "reluu"}, "activation='reluu' is unknown; did you mean one of .*'relu'"),
        ({"batch_size": 0}, "mlp: batch_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.mlp((4,), 3, **settings)
