import jax
import jax.numpy as jnp
import numpy as np

from metaopt.algorithms._categorical import divergence, entropy, log_prob_of, mean_over, of_actions

P, Q = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.1, 0.3])


def test_divergence_and_entropy_are_those_of_a_closed_form(x64):
    p, q = jnp.log(3 * P), jnp.log(5 * Q)  # Logits are known up to a constant.
    np.testing.assert_allclose(divergence(p, q), np.sum(P * np.log(P / Q)), rtol=1e-12)
    np.testing.assert_allclose(entropy(p), -np.sum(P * np.log(P)), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(divergence, 1)(p, q), Q - P, atol=1e-12)


def test_what_belongs_to_actions_is_picked_by_hand():
    logits = jnp.log(jnp.stack([P, Q]))
    actions = jnp.array([2, 0])
    np.testing.assert_allclose(log_prob_of(logits, actions), np.log([0.3, 0.6]), rtol=1e-6)
    table = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(of_actions(table, actions), [[4, 5], [6, 7]])
    active = jnp.array([[True, False], [True, True]])
    each = jnp.array([[1.0, jnp.nan], [2.0, 6.0]])
    assert mean_over(each, active) == 3
