import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.aggregators import checks, golden


def by_hand(matrix, orders):
    """The loop of the paper on vectors."""
    total = np.zeros(matrix.shape[1])
    for i, order in enumerate(orders):
        g = matrix[i].copy()
        for j in order:
            if j != i and g @ matrix[j] < 0:
                g -= g @ matrix[j] / (matrix[j] @ matrix[j]) * matrix[j]
        total += g
    return total


@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation():
    checks.assert_as_published({"pcgrad": 1e-9})


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_it_agrees_with_the_published_implementation_on_all_shapes():
    checks.assert_as_published({"pcgrad": 1e-9}, ("conflict", "agreement", "2x5", "3x10", "5x20"))


@pytest.mark.usefixtures("x64")
def test_every_key_gives_the_result_of_some_order():
    matrix = np.array([[1.0, 0.5, 0.0], [-1.0, 1.0, 0.2], [0.1, -1.5, 1.0]])
    # Where a gradient itself stands in the order does not matter.
    options = [
        by_hand(matrix, [(1, 2)[:: 1 - 2 * a], (0, 2)[:: 1 - 2 * b], (0, 1)[:: 1 - 2 * c]])
        for a in (0, 1)
        for b in (0, 1)
        for c in (0, 1)
    ]
    keys = jax.random.split(jax.random.key(0), 64)
    found = jax.jit(jax.vmap(aggregators.pcgrad().aggregate, (None, 0)))(jnp.array(matrix), keys)
    distance = np.abs(np.asarray(found)[:, None] - np.array(options)[None]).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-12
    assert len(set(distance.argmin(axis=1))) > 1


@pytest.mark.usefixtures("x64")
def test_its_derivative_is_that_of_the_projections():
    checks.assert_derivative(golden.in_turn())


def test_awkward_gradients_give_finite_updates_and_derivatives():
    checks.assert_finite_on_awkward(aggregators.pcgrad())


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="pcgrad: aggregate needs a key"):
        aggregators.pcgrad().aggregate(jnp.ones((2, 3)))
