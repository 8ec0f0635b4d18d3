import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt import unroll
from tests.helpers import standard_errors


def test_lengths_are_log_uniform():
    horizon = unroll.log_uniform(3, 20)
    keys = jax.random.split(jax.random.key(0), 20_000)
    lengths = np.asarray(jax.jit(jax.vmap(lambda k: unroll.sample_length(horizon, k)))(keys))
    values = np.arange(3, 21)
    expected = np.log((values + 1) / values) / np.log(21 / 3)
    observed = lengths[:, None] == values[None]
    assert standard_errors(observed, expected) < 4.5
    assert standard_errors(observed, np.full(18, 1 / 18)) > 4.5


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 400), st.integers(1, 60))
@pytest.mark.compiles
def test_a_constant_horizon_is_exact(windows, truncation):
    horizon = unroll.as_horizon(windows * truncation, name="test", multiple_of=truncation)
    keys = jax.random.split(jax.random.key(windows), 16)
    lengths = jax.vmap(lambda key: unroll.sample_length(horizon, key, multiple_of=truncation))(keys)
    np.testing.assert_array_equal(lengths, windows * truncation)


def test_lengths_are_multiples_of_the_truncation_up_to_both_ends():
    horizon = unroll.log_uniform(50, 200)
    keys = jax.random.split(jax.random.key(1), 500)
    lengths = jax.vmap(lambda k: unroll.sample_length(horizon, k, multiple_of=50))(keys)
    assert set(np.asarray(lengths)) == {50, 100, 150, 200}


@pytest.mark.parametrize(
    ("horizon", "message"),
    [
        (100, "try horizon=90 or truncation=25"),
        (10, "try horizon=30 or truncation=10"),
        ((60, 100), "horizon=100 is not a multiple"),
        (0, "at least 1 step"),
        ((90, 60), "need 1 <= shortest <= longest"),
    ],
)
def test_bad_horizons_name_the_nearest_good_one(horizon, message):
    with pytest.raises(ValueError, match=message):
        unroll.as_horizon(horizon, name="test", multiple_of=30)
    with pytest.raises(ValueError, match="log_uniform: need 1"):
        unroll.log_uniform(0, 5)


def test_horizon_draws_have_an_integer_dtype():
    assert unroll.sample_length(unroll.log_uniform(1, 2), jax.random.key(0)).dtype == jnp.int32
