import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core
from metaopt.algorithms import MAMLPlusPlusState, MAMLPlusPlusTheta, anil, maml, maml_plus_plus
from metaopt.algorithms._maml_plus_plus import step_weights
from tests.algorithms.small_network import DATA, small_network, small_params
from tests.algorithms.test_maml import CENTRE, CURVATURE, RATE, SHIFTS, parabolas
from tests.helpers import central_differences, ravel, relative_error


def published_weights(progress: float, num_steps: int) -> np.ndarray:
    """The schedule as the public code steps through it, with 1,000 epochs of fading."""
    epochs, epoch = 1000, round(1000 * progress)
    if epoch >= epochs:
        return np.eye(num_steps)[-1]
    weights = np.ones(num_steps) / num_steps
    decay = 1 / num_steps / epochs
    lowest = 0.03 / num_steps
    for index in range(num_steps - 1):
        weights[index] = max(weights[index] - epoch * decay, lowest)
    highest = 1 - (num_steps - 1) * lowest
    weights[-1] = min(weights[-1] + epoch * (num_steps - 1) * decay, highest)
    return weights


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_losses_are_weighted_as_in_the_public_code(x64, num_steps):
    for progress in (0.0, 0.3, 0.96, 0.98, 0.999, 1.0, 1.7):
        weights = step_weights(jnp.asarray(progress), num_steps)
        np.testing.assert_allclose(weights, published_weights(progress, num_steps), rtol=1e-12)
        np.testing.assert_allclose(np.sum(weights), 1.0, rtol=1e-12)


@pytest.mark.parametrize("gradient", ["reverse", "first_order"])
def test_agrees_with_the_closed_form_of_parabolas(x64, gradient):
    """Two steps, halfway through the fading: both losses count, and each step has its rate."""
    rates = np.array([0.2, 0.05])
    theta = MAMLPlusPlusTheta({"p": jnp.array([0.3, -0.7])}, {"p": jnp.log(rates)})
    learner = maml_plus_plus(parabolas(), fading=10, num_steps=2, num_tasks=3, gradient=gradient)
    state = MAMLPlusPlusState(jnp.array(5, jnp.int32))
    estimate, state = jax.jit(learner.estimator.estimate)(theta, state, SHIFTS, jax.random.key(3))
    assert int(state.num_estimates) == 6

    minimum = CENTRE + SHIFTS.inner
    gap = np.asarray(theta.params["p"]) - minimum
    shrink = 1 - rates[:, None] * CURVATURE
    gaps = np.stack([gap * shrink[0], gap * shrink[0] * shrink[1]])
    residual = minimum + gaps - CENTRE - SHIFTS.outer
    outer = np.array([[0.25], [0.75]]) * CURVATURE * residual
    slopes = np.stack([-CURVATURE * gap, -CURVATURE * gaps[0]])  # Of each step, by its rate.
    if gradient == "first_order":
        by_start = outer.sum(axis=0)
        by_rates = np.array([np.sum(outer * slopes[0]), np.sum(outer[1] * slopes[1])])
    else:
        by_start = outer[0] * shrink[0] + outer[1] * shrink[0] * shrink[1]
        through = outer[0] + outer[1] * shrink[1]
        by_rates = np.array([np.sum(through * slopes[0]), np.sum(outer[1] * slopes[1])])
    losses = 0.5 * np.sum(CURVATURE * residual**2, axis=1)
    np.testing.assert_allclose(estimate.loss, 0.25 * losses[0] + 0.75 * losses[1], rtol=1e-10)
    np.testing.assert_allclose(estimate.grad.params["p"], by_start, rtol=1e-10)
    np.testing.assert_allclose(estimate.grad.log_rates["p"], by_rates * rates, rtol=1e-10)


def theta_of(rate, num_steps) -> MAMLPlusPlusTheta:
    params = small_params()
    rates = jax.tree.map(lambda x: np.full(num_steps, np.log(rate)), params)
    return MAMLPlusPlusTheta(params, rates)


def test_agrees_with_central_differences_on_a_network(x64):
    learner = maml_plus_plus(small_network(), fading=4, num_steps=3, num_tasks=1)

    def estimate(theta):
        state = MAMLPlusPlusState(jnp.array(1, jnp.int32))
        return learner.estimator.estimate(theta, state, DATA, jax.random.key(2))[0]

    theta = theta_of(0.05, num_steps=3)
    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    grad = jax.jit(lambda theta: estimate(theta).grad)(theta)
    assert relative_error(ravel(grad), differences) < 1e-6


def test_after_the_fading_and_with_equal_rates_it_is_maml(x64):
    family, settings = small_network(), {"num_steps": 3, "num_tasks": 1}
    learner = maml_plus_plus(family, learning_rate=RATE, fading=2, **settings)
    plain = maml(family, optax.sgd(RATE), **settings)
    theta = learner.init(jax.random.key(0))
    assert relative_error(theta.params, plain.init(jax.random.key(0))) == 0
    np.testing.assert_allclose(ravel(theta.log_rates), np.log(RATE), rtol=1e-12)

    @jax.jit
    def both(theta):
        state = MAMLPlusPlusState(jnp.array(2, jnp.int32))
        first, _ = learner.estimator.estimate(theta, state, DATA, jax.random.key(1))
        return first, plain.estimator.estimate(theta.params, (), DATA, jax.random.key(1))[0]

    first, second = both(theta_of(RATE, num_steps=3))
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-12)
    assert relative_error(first.grad.params, second.grad) < 1e-12


def test_more_steps_than_were_trained_go_on_with_the_last_rates(x64):
    rates = np.array([0.2, 0.05])
    theta = MAMLPlusPlusTheta({"p": jnp.array([0.3, -0.7])}, {"p": jnp.log(rates)})
    longer = maml_plus_plus(parabolas(), num_steps=4)
    params = jax.jit(longer.adapt)(theta, CENTRE, SHIFTS.inner, jax.random.key(0))
    expected = np.asarray(theta.params["p"])
    for rate in (0.2, 0.05, 0.05, 0.05):
        expected = expected - rate * CURVATURE * (expected - CENTRE - SHIFTS.inner)
    np.testing.assert_allclose(params["p"], expected, rtol=1e-12)


def test_first_and_second_order_learners_share_theta_and_state():
    first = maml_plus_plus(parabolas(), num_steps=2, num_tasks=1, gradient="first_order")
    second = maml_plus_plus(parabolas(), num_steps=2, num_tasks=1)
    theta = first.init(jax.random.key(0))
    state = first.estimator.init(theta, SHIFTS, jax.random.key(1))
    for count, learner in enumerate((first, second), start=1):
        estimate, state = learner.estimator.estimate(theta, state, SHIFTS, jax.random.key(2))
        assert jax.tree.structure(estimate.grad) == jax.tree.structure(theta)
        assert int(state.num_estimates) == count


def shifted_parabolas() -> core.TaskFamily:
    """`parabolas` with p = x + s, of which s has a value for every step."""

    def loss(params, centre, shift, key):
        return parabolas().loss({"p": params["x"] + params["s"]}, centre, shift, key)

    def init(task_params, key):
        return {"x": jnp.array([0.3, -0.7]), "s": jnp.array([0.1, 0.2])}

    return parabolas()._replace(init=init, loss=loss)


def mark_s(params):
    return {name: name == "s" for name in params}


def test_every_step_has_values_of_its_own_by_hand(x64):
    """Those of a step are used in its gradient, and in the query loss where it ends."""
    rates, shifts = np.array([0.2, 0.05]), np.array([[0.1, 0.2], [-0.4, 0.3], [0.5, -0.6]])
    theta = MAMLPlusPlusTheta(
        {"x": jnp.array([0.3, -0.7]), "s": jnp.asarray(shifts)},
        {"x": jnp.log(rates), "s": optax.MaskedNode()},
    )
    settings: dict = {"per_step": mark_s, "num_tasks": 1}
    for num_steps in (1, 2, 4):  # Fewer than were trained, as many, and more.
        learner = maml_plus_plus(shifted_parabolas(), num_steps=num_steps, **settings)
        adapt = jax.jit(learner.adapt)
        params = adapt(theta, CENTRE, SHIFTS.inner, jax.random.key(0))
        x = np.asarray(theta.params["x"])
        for k in range(num_steps):
            rate, shift = rates[min(k, 1)], shifts[min(k, 2)]
            x = x - rate * CURVATURE * (x + shift - CENTRE - SHIFTS.inner)
        np.testing.assert_allclose(params["x"], x, rtol=1e-12)
        np.testing.assert_allclose(params["s"], shifts[min(num_steps, 2)], rtol=1e-12)


def test_values_per_step_start_equal_and_have_no_rates():
    learner = maml_plus_plus(shifted_parabolas(), per_step=mark_s, num_steps=2)
    theta = learner.init(jax.random.key(0))
    np.testing.assert_array_equal(theta.params["s"], np.tile(np.float32([0.1, 0.2]), (3, 1)))
    assert theta.log_rates["x"].shape == (2,)
    assert theta.log_rates["s"] == optax.MaskedNode()


def test_values_per_step_agree_with_central_differences(x64):
    family, mark = small_network(), lambda params: ({"w": False, "b": True}, False)
    learner = maml_plus_plus(family, per_step=mark, num_steps=2, num_tasks=1, fading=4)
    theta = jax.tree.map(lambda x: x + 0.1 * np.arange(x.size).reshape(x.shape), theta_per_step(2))

    def estimate(theta):
        state = MAMLPlusPlusState(jnp.array(1, jnp.int32))
        return learner.estimator.estimate(theta, state, DATA, jax.random.key(2))[0]

    estimate = jax.jit(estimate)
    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    assert relative_error(ravel(estimate(theta).grad), differences) < 1e-6


def test_to_first_order_values_per_step_have_their_part_in_the_query_losses(x64):
    settings: dict = {"per_step": mark_s, "num_steps": 2, "num_tasks": 1, "fading": 4}
    learner = maml_plus_plus(shifted_parabolas(), gradient="first_order", **settings)
    theta = learner.init(jax.random.key(0))
    state = MAMLPlusPlusState(jnp.array(1, jnp.int32))
    estimate, _ = jax.jit(learner.estimator.estimate)(theta, state, SHIFTS, jax.random.key(2))
    by_step = np.abs(estimate.grad.params["s"]).max(axis=1)
    assert by_step[0] == 0  # No query set is judged before the first step.
    assert np.all(by_step[1:] > 1e-3)


def theta_per_step(num_steps) -> MAMLPlusPlusTheta:
    """Equal biases of the body for all steps."""
    theta = theta_of(RATE, num_steps)
    (body, head), (rates, head_rates) = theta.params, theta.log_rates
    biases = np.tile(body["b"], (num_steps + 1, 1))
    return MAMLPlusPlusTheta(
        ({"w": body["w"], "b": biases}, head),
        ({"w": rates["w"], "b": optax.MaskedNode()}, head_rates),
    )


def test_equal_values_per_step_are_values_that_do_not_adapt(x64):
    """Their meta-gradients then add up to that of ANIL with all else as its head."""
    adapts = lambda params: ({"w": True, "b": False}, True)  # noqa: E731
    marks = lambda params: ({"w": False, "b": True}, False)  # noqa: E731
    family, settings = small_network(), {"num_steps": 3, "num_tasks": 1}
    learner = maml_plus_plus(family, per_step=marks, fading=2, **settings)
    plain = anil(family, optax.sgd(RATE), head=adapts, **settings)

    @jax.jit
    def both():
        state = MAMLPlusPlusState(jnp.array(2, jnp.int32))
        key = jax.random.key(1)
        first, _ = learner.estimator.estimate(theta_per_step(3), state, DATA, key)
        key = jax.random.clone(key)
        return first, plain.estimator.estimate(small_params(), (), DATA, key)[0]

    first, second = both()
    (body, head), (plain_body, plain_head) = first.grad.params, second.grad
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-12)
    np.testing.assert_allclose(np.sum(body["b"], axis=0), plain_body["b"], rtol=1e-10)
    assert relative_error((body["w"], head), (plain_body["w"], plain_head)) < 1e-10


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="per_step= leaves nothing that adapts"):
        maml_plus_plus(parabolas(), per_step=lambda params: True).init(jax.random.key(0))
    with pytest.raises(ValueError, match="maml_plus_plus: learning_rate must be positive"):
        maml_plus_plus(parabolas(), learning_rate=-1.0)
    with pytest.raises(ValueError, match="maml_plus_plus: fading must be positive"):
        maml_plus_plus(parabolas(), fading=0)
    with pytest.raises(ValueError, match="maml_plus_plus: num_steps must be at least 1"):
        maml_plus_plus(parabolas(), num_steps=0)
    with pytest.raises(ValueError, match="maml_plus_plus: num_tasks must be an integer"):
        maml_plus_plus(parabolas(), num_tasks=0)
