"""Meta-training is itself a System, so its own settings can be learned: three levels by nesting.

level 1   x     minimises ½ a x² by gradient descent with step size θ
level 2   θ     follows the estimated meta-gradient of level 1 with step size exp φ
level 3   φ     minimises the meta-loss along level 2
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, learned, tasks
from metaopt.core import StepInfo, System
from metaopt.estimators import backprop, es, forward
from tests.estimators import toys
from tests.helpers import central_differences, relative_error, standard_errors

CURVATURE, START, FIRST = 0.8, 1.5, 0.3
PHI = -1.2


def descent() -> System:
    """Level 1: the state is x, the loss is taken after the step."""

    def init(theta, data, key, *, num_steps=None):
        return START * jnp.ones_like(theta)

    def step(theta, state, data, key):
        state = state - theta * CURVATURE * state
        return state, StepInfo(0.5 * CURVATURE * state**2, jnp.array(False))

    return System(init, step)


def meta_training(estimator) -> System:
    """Level 2: the state is θ and the estimator's; the loss is the meta-loss of the new θ."""

    def init(theta, data, key, *, num_steps=None):
        first = FIRST * jnp.ones_like(theta)
        return first, estimator.init(first, data, key)

    def step(theta, state, data, key):
        key_estimate, key_loss = jax.random.split(key)
        inner, inner_state = state
        estimate, inner_state = estimator.estimate(inner, inner_state, data, key_estimate)
        inner = inner - jnp.exp(theta) * estimate.grad
        after, _ = estimator.estimate(inner, inner_state, data, key_loss)
        return (inner, inner_state), StepInfo(after.loss, jnp.array(False))

    return System(init, step)


def meta_loss(theta, num_steps):
    """Mean of ½ a x_t² over the steps, x_t = (1 − θ a)^t x₀."""
    steps = np.arange(1, num_steps + 1)
    return np.mean(0.5 * CURVATURE * START**2 * (1 - theta * CURVATURE) ** (2 * steps))


def meta_gradient(theta, num_steps):
    steps = np.arange(1, num_steps + 1)
    powers = (1 - theta * CURVATURE) ** (2 * steps - 1)
    return np.mean(-steps * CURVATURE**2 * START**2 * powers)


def level_three(phi, num_inner, num_outer):
    """The loss that φ minimises, in closed form for level 1 and by iteration for level 2."""
    theta, losses = FIRST, []
    for _ in range(num_outer):
        theta = theta - np.exp(phi) * meta_gradient(theta, num_inner)
        losses.append(meta_loss(theta, num_inner))
    return np.mean(losses)


@pytest.mark.parametrize(
    ("level_two", "level_one"),
    [(backprop, backprop), (forward, backprop), (backprop, forward), (forward, forward)],
)
@pytest.mark.compiles
def test_hyperparameters_of_meta_training_have_exact_gradients(x64, level_two, level_one):
    inner = level_one(descent(), horizon=4, num_tasks=1)
    estimator = level_two(meta_training(inner), horizon=3, num_tasks=1)
    estimate, _ = jax.jit(estimator.estimate)(jnp.array(PHI), (), (), jax.random.key(0))
    step = 1e-5
    expected = (level_three(PHI + step, 4, 3) - level_three(PHI - step, 4, 3)) / (2 * step)
    np.testing.assert_allclose(estimate.grad, expected, rtol=1e-8)
    np.testing.assert_allclose(estimate.loss, level_three(PHI, 4, 3), rtol=1e-12)


@pytest.mark.compiles
def test_one_step_of_each_level_agrees_with_the_chain_rule(x64):
    inner = backprop(descent(), horizon=1, num_tasks=1)
    estimator = backprop(meta_training(inner), horizon=1, num_tasks=1)
    estimate, _ = jax.jit(estimator.estimate)(jnp.array(PHI), (), (), jax.random.key(1))
    slope = meta_gradient(FIRST, 1)
    moved = FIRST - np.exp(PHI) * slope
    expected = meta_gradient(moved, 1) * -np.exp(PHI) * slope
    np.testing.assert_allclose(estimate.grad, expected, rtol=1e-10)


def test_evolution_strategies_of_meta_training_are_unbiased():
    inner = backprop(descent(), horizon=2, num_tasks=1, remat="none")
    # At this scale smoothing changes the gradient by less than the standard error.
    estimator = es(meta_training(inner), sigma=0.02, horizon=2, num_tasks=1)

    def grad(key):
        return estimator.estimate(jnp.array(PHI), (), (), key)[0].grad

    grads = jax.jit(jax.vmap(grad))(jax.random.split(jax.random.key(2), 20_000))
    step = 1e-5
    expected = (level_three(PHI + step, 2, 2) - level_three(PHI - step, 2, 2)) / (2 * step)
    assert standard_errors(grads, expected) < 4
    assert standard_errors(grads, 1.1 * expected) > 4


@pytest.mark.slow  # Reverse mode through forward mode through a scan, twice.
def test_stateful_estimators_nest_as_well(x64):
    """Real-time recurrent learning inside, backpropagation through its carried sensitivities."""
    inner = forward(toys.nonlinear(), horizon=4, truncation=2, num_tasks=1, stagger=False)
    system = meta_training(inner)
    estimator = backprop(system, horizon=3, num_tasks=1)
    phi = jnp.array([PHI, PHI + 0.3])
    estimate, _ = jax.jit(estimator.estimate)(phi, (), (), jax.random.key(3))

    def loss(phi):
        return (
            backprop(system, horizon=3, num_tasks=1, remat="none")
            .estimate(phi, (), (), jax.random.key(4))[0]
            .loss
        )

    assert relative_error(estimate.grad, central_differences(loss, phi)) < 1e-6


@pytest.mark.slow  # Third derivatives of a trained optimizer.
def test_a_learned_optimizer_on_quadratics_has_exact_gradients_of_its_meta_training(x64):
    optimizer = learned.hyperparameters(
        optax.sgd, learning_rate=learned.positive(0.1), momentum=learned.fraction(0.5)
    )
    first = optimizer.init(jax.random.key(5))
    inner = backprop(
        core.training(tasks.quadratic(dim=2), optimizer, outer_loss="same_batch"),
        horizon=4,
        num_tasks=2,
    )

    def init(theta, data, key, *, num_steps=None):
        return jax.tree.map(lambda x: jnp.asarray(x, float), first)

    def step(theta, state, data, key):
        key_estimate, key_loss = jax.random.split(key)
        grad = inner.estimate(state, (), data, key_estimate)[0].grad
        state = optax.tree.add_scale(state, -jnp.exp(theta), grad)
        loss = inner.estimate(state, (), data, key_loss)[0].loss
        return state, StepInfo(loss, jnp.array(False))

    estimator = backprop(System(init, step), horizon=2, num_tasks=1)
    phi, key = jnp.array(PHI), jax.random.key(6)
    estimate, _ = jax.jit(estimator.estimate)(phi, (), (), key)
    loss = lambda phi: estimator.estimate(phi, (), (), jax.random.clone(key))[0].loss  # noqa: E731
    assert relative_error(estimate.grad, central_differences(loss, phi)) < 1e-6
