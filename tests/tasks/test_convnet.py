import jax
import numpy as np
import pytest

from metaopt import tasks
from metaopt.data import Pool
from tests.helpers import relative_error


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(7, 6, 2), (4, 5, 1), (1, 1, 3)])
def test_matches_a_network_of_xla_convolutions(shape):
    family = tasks.convnet(shape, 3, channels=(2, 4))
    params = jax.tree.map(lambda x: x + 0.05, family.init((), jax.random.key(0)))
    inputs = jax.random.normal(jax.random.key(1), (5, *shape))
    labels = np.arange(5) % 3

    def expected(params):
        x = inputs
        for layer in params["convs"]:
            x = jax.lax.conv_general_dilated(
                x, layer["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layer["b"].reshape(1, 1, 1, -1))
        logits = x.mean((1, 2)) @ params["head"]["w"] + params["head"]["b"].reshape(1, -1)
        return -jax.nn.log_softmax(logits)[np.arange(5), labels].mean()

    def actual(params):
        return family.loss(params, (), Pool(inputs, labels), jax.random.key(2))[0]

    both = jax.jit(lambda p: (jax.value_and_grad(actual)(p), jax.value_and_grad(expected)(p)))
    (loss, grads), (expected_loss, expected_grads) = both(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    assert relative_error(grads, expected_grads) < 1e-11


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((8, 8), {}, r"input_shape=\(8, 8\) is not \(height, width, channels\)"),
        ((8, 8, 1), {"channels": ()}, r"channels=\(\) must hold positive numbers"),
        ((8, 8, 1), {"channels": (4, 0)}, r"channels=\(4, 0\) must hold positive numbers"),
        ((8, 8, 1), {"activation": "swish"}, "activation='swish' is unknown"),
    ],
)
def test_bad_settings_are_refused(shape, settings, message):
    with pytest.raises(ValueError, match=f"convnet: {message}"):
        tasks.convnet(shape, 3, **settings)
