import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.data import Pool
from tests.helpers import ravel, standard_errors


def batch():
    key_inputs, key_labels = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(key_inputs, (6, 2, 2))
    return Pool(inputs, jax.random.randint(key_labels, (6,), 0, 3))


@pytest.mark.usefixtures("x64")
def test_loss_and_preactivations_match_numpy():
    family = tasks.mup_mlp((2, 2), 3, hidden=(5, 4), activation="tanh", input_mult=0.7,
                           output_mult=3.0)  # fmt: skip
    params = family.init((), jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1, params)  # output weights away from zero
    x, y = np.asarray(batch().inputs).reshape(6, 4), np.asarray(batch().labels)
    values = []
    for layer, factor in zip(params, (0.7, 1.0, 3.0 / 4), strict=True):
        values.append(factor * x @ np.asarray(layer["w"]) + np.asarray(layer["b"]))
        x = np.tanh(values[-1])
    log_probability = values[-1] - np.log(np.exp(values[-1]).sum(1, keepdims=True))
    loss, metrics = family.loss(params, (), batch(), jax.random.key(2))
    np.testing.assert_allclose(loss, -log_probability[np.arange(6), y].mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics.accuracy, (values[-1].argmax(1) == y).mean(), rtol=1e-12)
    assert [x.shape for x in metrics.preactivations] == [(6, 5), (6, 4), (6, 3)]
    np.testing.assert_allclose(ravel(metrics.preactivations), ravel(values), rtol=1e-12)


def test_initial_weights_are_those_of_the_form():
    family = tasks.mup_mlp((200,), 10, hidden=(100, 90))
    first, second, output = family.init((), jax.random.key(0))
    # Truncation at two standard deviations leaves this share of the variance.
    share = 0.7737
    for weights, fan_in in ((first["w"], 200), (second["w"], 100)):
        squares = np.square(np.ravel(weights))
        assert standard_errors(squares, share / fan_in) < 4
        assert standard_errors(squares, 1.1 * share / fan_in) > 4
    assert not output["w"].any()
    biases = np.concatenate([first["b"], second["b"], output["b"]])
    assert standard_errors(biases, 0) < 4
    assert standard_errors(biases**2, 1) < 4
    assert standard_errors(biases**2, 1.6) > 4


def test_the_standard_form_has_output_weights_and_no_biases_at_first():
    family = tasks.mup_mlp((200,), 50, hidden=(100,), standard=True)
    first, output = family.init((), jax.random.key(0))
    assert standard_errors(np.square(np.ravel(output["w"])), 0.7737 / 100) < 4
    assert not first["b"].any()
    assert not output["b"].any()


def test_the_forms_are_one_function_once_the_multiplier_undoes_the_width():
    mup = tasks.mup_mlp((2, 2), 3, hidden=(5, 4), output_mult=4.0)
    standard = tasks.mup_mlp((2, 2), 3, hidden=(5, 4), standard=True)
    params, key = standard.init((), jax.random.key(1)), jax.random.key(2)
    actual = mup.loss(params, (), batch(), key)
    expected = standard.loss(params, (), batch(), jax.random.clone(key))
    np.testing.assert_allclose(ravel(actual), ravel(expected), rtol=1e-6)


def test_hidden_weights_have_no_gradient_at_first_and_it_is_finite():
    family = tasks.mup_mlp((2, 2), 3, hidden=(5, 4))
    params = family.init((), jax.random.key(1))
    grads, _ = jax.grad(family.loss, has_aux=True)(params, (), batch(), jax.random.key(2))
    assert not ravel(grads[:2]).any()
    assert jnp.abs(grads[2]["w"]).max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": ()}, r"mup_mlp: hidden=\(\); give at least one width"),
        ({"hidden": (3, 0)}, r"mup_mlp: hidden=\(3, 0\)"),
        ({"activation": "reluu"}, "mup_mlp: activation='reluu' is unknown"),
        ({"batch_size": 0}, "mup_mlp: batch_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.mup_mlp((4,), 3, **settings)
