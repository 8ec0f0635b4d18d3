import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import train
from metaopt.core import Estimate, EstimateInfo, Estimator
from tests.train.problems import equal_bits


def constant(grad, *, nonfinite=0.0, loss=1.0):
    """An estimator that always reports the same gradient and counts its calls in its state."""
    info = EstimateInfo(jnp.array(nonfinite), jnp.array(0.25), jnp.array(0.5), jnp.array(7))

    def estimate(theta, state, data, key):
        return Estimate(jnp.asarray(grad), jnp.array(loss), info), state + 1

    return Estimator(lambda theta, data, key: jnp.array(0), estimate)


def one_step(estimators, outer_opt=None, theta=(1.0, 2.0)):
    outer_opt = optax.sgd(0.1) if outer_opt is None else outer_opt
    data = dict.fromkeys(estimators, ())
    state = train.init_state(
        estimators, jnp.array(theta), data, jax.random.key(0), outer_opt=outer_opt
    )
    return train.meta_step(estimators, outer_opt)(state, data)


def test_gradients_and_losses_of_families_are_averaged():
    families = {"a": constant([1.0, 0.0], loss=2.0), "b": constant([3.0, 4.0], loss=6.0)}
    state, metrics = one_step(families)
    np.testing.assert_allclose(state.theta, [1 - 0.1 * 2, 2 - 0.1 * 2], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 4.0)
    np.testing.assert_allclose([metrics["loss/a"], metrics["loss/b"]], [2.0, 6.0])
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(8), rtol=1e-6)
    assert metrics["inner_steps"] == 14
    assert state.step == 1
    assert all(count == 1 for count in state.estimator_states.values())


@pytest.mark.parametrize(
    "untrusted",
    [constant([jnp.nan, 1.0]), constant([1.0, 1.0], nonfinite=0.6), constant([jnp.inf, 0.0])],
)
def test_an_untrusted_update_is_skipped_and_moments_are_kept(untrusted):
    outer_opt = optax.adam(0.1)
    state, metrics = one_step({"a": untrusted}, outer_opt)
    np.testing.assert_array_equal(state.theta, [1.0, 2.0])
    assert equal_bits(state.outer_state, outer_opt.init(jnp.array([1.0, 2.0])))
    assert metrics["skipped"] == 1
    assert metrics["update_norm"] == 0
    assert state.step == 1


def test_half_of_the_tasks_still_count():
    state, metrics = one_step({"a": constant([1.0, 1.0], nonfinite=0.5)})
    np.testing.assert_allclose(state.theta, [0.9, 1.9], rtol=1e-6)
    assert metrics["skipped"] == 0


def test_an_update_that_overflows_theta_is_skipped():
    state, metrics = one_step({"a": constant([-3e38, 0.0])}, optax.sgd(1.0), theta=(3e38, 0.0))
    np.testing.assert_array_equal(state.theta, np.float32([3e38, 0.0]))
    assert metrics["skipped"] == 1


def test_masked_updates_leave_frozen_leaves_bit_identical():
    # Weight decay would move a leaf whose gradient alone is masked.
    outer_opt = optax.chain(
        optax.adamw(0.1, weight_decay=0.5),
        optax.masked(optax.set_to_zero(), jnp.array([True, False])[0].item()),
    )
    state, _ = one_step({"a": constant([1.0, 1.0])}, outer_opt)
    np.testing.assert_array_equal(state.theta, [1.0, 2.0])


def test_the_outer_optimizer_is_told_the_loss():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append(float(value))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    one_step({"a": constant([1.0, 1.0], loss=3.5)}, spy)
    assert seen == [3.5]


def test_best_theta_is_the_one_with_the_lowest_score():
    state, _ = one_step({"a": constant([1.0, 1.0])})
    for score, theta in ((3.0, 1.0), (2.0, 2.0), (2.5, 3.0), (np.nan, 4.0)):
        state = train.keep_best(state._replace(theta=jnp.full(2, theta)), jnp.array(score))
    np.testing.assert_array_equal(state.best_theta, 2.0)
    assert state.best_score == 2.0


def test_an_update_that_would_spoil_the_optimizer_alone_is_skipped():
    # 1e30 squared overflows Adam's second moment; theta itself would stay finite.
    outer_opt = optax.adam(0.1)
    state, metrics = one_step({"a": constant([1e30, 1.0])}, outer_opt)
    assert metrics["skipped"] == 1
    np.testing.assert_array_equal(state.theta, [1.0, 2.0])
    assert equal_bits(state.outer_state, outer_opt.init(jnp.array([1.0, 2.0])))


def test_an_optimizer_whose_state_begins_at_infinity_still_works():
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, updates), jnp.minimum(state, 3.0)

    lowest = optax.GradientTransformation(lambda params: jnp.array([jnp.inf, 1.0]), update)
    state, metrics = one_step({"a": constant([1.0, 0.0])}, lowest)
    assert metrics["skipped"] == 0
    np.testing.assert_allclose(state.theta, [0.9, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(state.outer_state, [3.0, 1.0])
