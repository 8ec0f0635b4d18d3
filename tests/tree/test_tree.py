import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tree
from tests.helpers import standard_errors


def test_where_selects_the_whole_tree_keys_included():
    first = {"a": jnp.ones(2), "key": jax.random.key(0)}
    second = {"a": jnp.zeros(2), "key": jax.random.key(1)}
    chosen = tree.where(jnp.array(False), first, second)
    np.testing.assert_array_equal(chosen["a"], 0)
    assert jax.random.key_data(chosen["key"]).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_all_finite_sees_one_bad_entry_in_floating_leaves_only(bad):
    good = {"a": jnp.ones(3), "n": jnp.array(2**31 - 1), "key": jax.random.key(0)}
    assert tree.all_finite(good)
    assert not tree.all_finite(good | {"b": jnp.ones(3, jnp.bfloat16).at[1].set(bad)})
    assert tree.all_finite({"n": jnp.array(1)})


def test_normal_noise_is_standard_and_independent_between_leaves():
    like = {"a": jnp.zeros(20_000), "b": jnp.zeros(20_000)}
    noise = tree.sample_normal(like, jax.random.key(0))
    assert standard_errors(noise["a"], 0.0) < 4
    assert standard_errors(noise["a"] ** 2, 1.0) < 4
    assert standard_errors(noise["a"] * noise["b"], 0.0) < 4
    assert standard_errors(noise["a"] * noise["a"], 0.0) > 4


def test_dtypes_follow_the_other_tree():
    like = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros((), jnp.float32)}
    noise = tree.sample_normal(like, jax.random.key(1))
    assert (noise["a"].dtype, noise["a"].shape) == (jnp.bfloat16, (2,))
    cast = tree.cast_like({"a": np.ones(2), "b": 3}, like)
    assert (cast["a"].dtype, cast["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert cast["b"] == 3
