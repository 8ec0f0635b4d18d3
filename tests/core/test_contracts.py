import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import core


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_default_normaliser_is_finite_and_otherwise_the_identity(dtype):
    losses = jnp.array([1.5, -3.0, jnp.nan, jnp.inf, -jnp.inf], dtype)
    kept = np.asarray(core.keep_finite(losses, ()), np.float64)
    assert np.all(np.isfinite(kept))
    np.testing.assert_array_equal(kept[:2], [1.5, -3.0])
    assert kept[2] == kept[3] == -kept[4] == float(jnp.finfo(dtype).max)
