import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

from metaopt import aggregators
from tests.helpers import relative_error

MATRIX = np.array([[3.0, -1.0, 0.5, 2.0], [-1.0, 2.0, 0.0, 1.0]])


def tree(dtype=jnp.float32):
    matrix = jnp.asarray(MATRIX, dtype)
    return {"a": matrix[:, 0], "b": matrix[:, 1:].reshape(2, 3, 1)}


def test_the_gramian_of_a_tree_is_that_of_its_rows():
    assert relative_error(aggregators.gramian(tree()), MATRIX @ MATRIX.T) < 1e-6
    assert aggregators.gramian(tree(jnp.bfloat16)).dtype == jnp.float32


def test_a_combination_keeps_structure_and_dtypes():
    update = aggregators.combine(jnp.array([2.0, -1.0]), tree(jnp.bfloat16))
    expected = np.array([2.0, -1.0]) @ MATRIX
    assert update["a"].dtype == update["b"].dtype == jnp.bfloat16
    assert update["a"] == expected[0]
    np.testing.assert_array_equal(update["b"], expected[1:].reshape(3, 1).astype(np.float32))


def test_the_jacobian_of_a_vector_of_losses_has_one_row_per_loss():
    x = jnp.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])

    def losses(params, shift):
        return x @ params["w"] ** 2 + shift

    params = {"w": jnp.array([1.0, -2.0, 0.5])}
    value, jacobian = aggregators.value_and_jacobian(losses)(params, 1.0)
    np.testing.assert_allclose(value, losses(params, 1.0))
    np.testing.assert_allclose(jacobian["w"], 2 * x * params["w"][None])


def test_losses_may_report_more():
    def losses(params):
        return params * jnp.array([1.0, 2.0]), "report"

    (value, aux), jacobian = aggregators.value_and_jacobian(losses, has_aux=True)(jnp.ones(()))
    np.testing.assert_array_equal(value, [1, 2])
    np.testing.assert_array_equal(jacobian, [1, 2])
    assert aux == "report"


def test_an_aggregator_is_the_first_stage_of_a_chain():
    params = {"a": jnp.zeros(()), "b": jnp.zeros((3, 1))}
    tx = optax.chain(aggregators.aggregate(aggregators.mean()), optax.sgd(0.5))
    updates, _ = jax.jit(tx.update)(tree(), tx.init(params), params)
    expected = -0.5 * MATRIX.mean(axis=0)
    np.testing.assert_allclose(updates["a"], expected[0])
    np.testing.assert_allclose(updates["b"], expected[1:].reshape(3, 1))


def test_an_aggregator_fits_between_the_stages_of_optax():
    normalise = optax.stateless(lambda x, _: jax.tree.map(lambda x: 2 * x, x))
    tx = aggregating.process(normalise, aggregators.aggregate(aggregators.mean()), optax.sgd(0.25))
    params = {"a": jnp.zeros(()), "b": jnp.zeros((3, 1))}
    updates, _ = jax.jit(tx.update)(tree(), tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.5 * MATRIX.mean(axis=0)[0])


def test_every_update_draws_anew_and_the_same_from_one_seed():
    def two_updates(seed):
        tx = aggregators.aggregate(aggregators.graddrop(), seed=seed)
        state = tx.init(None)
        updates = []
        for _ in range(2):
            update, state = tx.update(jnp.ones((2, 64)).at[0].set(-1), state)
            updates.append(np.asarray(update))
        return updates

    first, second = two_updates(0)
    assert (first != second).any()
    np.testing.assert_array_equal(first, two_updates(0)[0])
    assert (first != two_updates(1)[0]).any()


def test_an_own_rule_needs_weights_alone():
    shortest = aggregators.by_gramian(
        lambda gramian, key=None: jax.nn.one_hot(jnp.argmin(jnp.diagonal(gramian)), len(gramian))
    )
    np.testing.assert_allclose(shortest.aggregate(jnp.asarray(MATRIX)), MATRIX[1])


def test_squares_that_overflow_do_not_change_the_weights():
    aggregator = aggregators.by_gramian(lambda gramian, key=None: gramian[0] / gramian[0, 0])
    found = aggregator.aggregate(1e30 * jnp.asarray(MATRIX, jnp.float32))
    weights = (MATRIX @ MATRIX.T)[0] / (MATRIX @ MATRIX.T)[0, 0]
    np.testing.assert_allclose(found, 1e30 * (weights @ MATRIX), rtol=1e-5)


@pytest.mark.parametrize("jacobian", [{}, {"a": jnp.ones(())}, (jnp.ones((2, 1)), jnp.ones(3))])
def test_leaves_without_a_common_leading_axis_are_refused(jacobian):
    with pytest.raises(ValueError, match="leading axis"):
        aggregators.upgrad().aggregate(jacobian)


def test_losses_that_are_no_vector_are_refused():
    with pytest.raises(ValueError, match="must return a vector"):
        aggregators.value_and_jacobian(jnp.sum)(jnp.ones(2))
