import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.data import Pool, sample_batch
from tests.helpers import standard_errors


def test_a_batch_pairs_inputs_with_their_labels_and_draws_uniformly():
    pool = {"x": jnp.arange(5.0).reshape(5, 1), "y": 10 * jnp.arange(5)}
    batch = jax.jit(lambda pool, key: sample_batch(pool, key, batch_size=4000))(
        pool, jax.random.key(0)
    )
    np.testing.assert_array_equal(10 * batch["x"][:, 0], batch["y"])
    assert batch["y"].dtype == jnp.int32
    counts = np.asarray(batch["y"])[:, None] == 10 * np.arange(5)
    assert standard_errors(counts, [0.2] * 5) < 4.5


@pytest.mark.parametrize(
    ("pool", "size", "message"),
    [
        (Pool(jnp.zeros((3, 2)), jnp.zeros(4)), 1, "leading axes of the pool differ"),
        (Pool(jnp.zeros((0, 2)), jnp.zeros(0)), 1, "the pool is empty"),
        (Pool(jnp.zeros((3, 2)), jnp.zeros(3)), 0, "batch_size=0 is below 1"),
        ((), 1, "pass arrays with an equal leading axis"),
        (jnp.zeros(()), 1, "pass arrays with an equal leading axis"),
    ],
)
def test_bad_pools_and_sizes_are_refused(pool, size, message):
    with pytest.raises(ValueError, match=f"sample_batch: .*{message}|sample_batch: {message}"):
        sample_batch(pool, jax.random.key(0), batch_size=size)
