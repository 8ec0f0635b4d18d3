import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks
from tests.helpers import standard_errors


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published({"graddrop": 1e-12, "graddrop_leak": 1e-12})


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published(
        {"graddrop": 1e-12, "graddrop_leak": 1e-12},
        ("conflict", "agreement", "2x5", "3x10", "5x20"),
    )


def test_a_sign_is_kept_as_often_as_it_is_pure():
    rows = jnp.array([[3.0, 1.0], [-1.0, 2.0]])
    keys = jax.random.split(jax.random.key(0), 4_000)
    draws = jax.jit(jax.vmap(aggregators.graddrop().aggregate, (None, 0)))(rows, keys)
    np.testing.assert_array_equal(draws[:, 1], 3.0)
    # Three quarters positive: 3 with probability 3/4, -1 otherwise.
    assert standard_errors(draws[:, 0], 0.75 * 3 - 0.25 * 1) < 4
    assert set(np.asarray(draws[:, 0])) == {3.0, -1.0}


def test_a_hard_purity_takes_the_sign_of_the_sum():
    hard = aggregators.graddrop(purity=lambda p: (p > 0.5).astype(p.dtype))
    rows = jnp.array([[3.0, 1.0], [-1.0, -2.0]])
    np.testing.assert_array_equal(hard.aggregate(rows, jax.random.key(0)), [3.0, -2.0])


def test_a_full_leak_is_the_sum():
    rows = checks.some_jacobian()
    update = aggregators.graddrop(leak=jnp.ones(3)).aggregate(rows, jax.random.key(0))
    np.testing.assert_allclose(update, rows.sum(axis=0), rtol=1e-6)


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.graddrop())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="leak must be a vector"):
        aggregators.graddrop(leak=jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="graddrop: aggregate needs a key"):
        aggregators.graddrop().aggregate(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="for 2 objectives"):
        aggregators.graddrop(leak=jnp.ones(3)).aggregate(jnp.ones((2, 3)), jax.random.key(0))
