import jax.numpy as jnp
import numpy as np

from metaopt import aggregators
from tests.aggregators import checks


def test_it_is_the_mean_of_the_rows():
    update = aggregators.mean().aggregate(checks.tree_of(checks.some_jacobian()))
    expected = np.asarray(checks.some_jacobian()).mean(axis=0)
    np.testing.assert_allclose(update["a"], expected[0], rtol=1e-6)
    np.testing.assert_allclose(update["b"][0], expected[1:], rtol=1e-6)


def test_its_weights_are_equal():
    np.testing.assert_array_equal(aggregators.mean().weights(jnp.eye(4)), np.full(4, 0.25))
