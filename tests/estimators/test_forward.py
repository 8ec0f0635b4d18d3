import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, learned, unroll
from metaopt.estimators import backprop, forward
from tests.estimators import toys
from tests.helpers import relative_error, standard_errors
from tests.tasks.rows import images, small_mlp

THETA = jnp.array([0.3, -0.2])


def small_network():
    """Training of a small network by Adam with learnable settings, its theta and its pool."""
    optimizer = learned.hyperparameters(
        optax.adam,
        learning_rate=learned.positive(0.05),
        b1=learned.fraction(0.9),
        eps_root=1e-8,
    )
    system = core.training(small_mlp(), optimizer)
    return system, optimizer.init(jax.random.key(0)), images()


@pytest.mark.parametrize("objective", ["mean", "last"])
def test_whole_trajectories_agree_with_reverse_mode(x64, objective):
    theta, key = jnp.asarray(THETA, jnp.float64), jax.random.key(0)
    settings = {"horizon": 9, "num_tasks": 2, "objective": objective}
    actual, _ = forward(toys.nonlinear(), columns_at_once=1, **settings).estimate(
        theta, (), (), key
    )
    expected, _ = backprop(toys.nonlinear(), **settings).estimate(theta, (), (), jax.random.key(1))
    assert relative_error(actual.grad, expected.grad) < 1e-10
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-12)
    # One product of each kind per inner step and coordinate.
    assert actual.info.oracles.hessian_products == 2 * 9 * 2


def full_gradient(theta, data, estimator, num_windows):
    """Gradient of a trajectory's mean loss from the same keys as the estimator's only task."""

    def loss(theta):
        # Whatever the window's length, a trajectory is its start and its windows.
        state, total = estimator.init(theta, data, jax.random.key(2)), 0.0
        for window in range(num_windows):
            key = jax.random.fold_in(jax.random.key(3), window)
            estimate, state = estimator.estimate(theta, state, data, key)
            total = total + estimate.loss / num_windows
        return total

    return jax.grad(loss)(theta)


@pytest.mark.slow  # Two compilations of a network.
def test_agrees_with_reverse_mode_on_a_network(x64):
    system, theta, pool = small_network()
    theta = jax.tree.map(lambda x: x.astype(float), theta)
    online = forward(system, horizon=4, truncation=2, num_tasks=1, stagger=False)

    @jax.jit
    def run(theta, pool):
        state, grads = online.init(theta, pool, jax.random.key(2)), []
        for window in range(2):
            key = jax.random.fold_in(jax.random.key(3), window)
            estimate, state = online.estimate(theta, state, pool, key)
            grads.append(estimate.grad)
        total = jax.tree.map(lambda *g: sum(g) / 2, *grads)
        return total, full_gradient(theta, pool, online, 2)

    actual, expected = run(theta, pool)
    assert relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("num_steps", [2, 3])
def test_windows_of_a_trajectory_sum_to_its_gradient(x64, num_steps):
    theta = jnp.asarray(THETA, jnp.float64)
    settings = {"horizon": 6, "num_tasks": 1}
    online = forward(toys.nonlinear(), truncation=num_steps, stagger=False, **settings)
    state, grads, step = online.init(theta, (), jax.random.key(2)), [], jax.jit(online.estimate)
    windows = 6 // num_steps
    for window in range(2 * windows):
        estimate, state = step(theta, state, (), jax.random.fold_in(jax.random.key(3), window))
        grads.append(estimate.grad / windows)
    expected, _ = backprop(toys.nonlinear(), **settings).estimate(theta, (), (), jax.random.key(4))
    # The second trajectory must not see the sensitivities of the first.
    for start in (0, windows):
        assert relative_error(sum(grads[start : start + windows]), expected.grad) < 1e-10


@pytest.mark.parametrize("directions", ["rademacher", "normal"])
def test_random_directions_are_unbiased(directions):
    estimator = forward(
        toys.linear(), horizon=6, num_tasks=1, num_directions=2, directions=directions
    )
    grads = toys.summed_windows(
        estimator, THETA, jax.random.key(5), num_windows=1, num_samples=20_000
    )
    expected = toys.linear_gradient(6)
    assert standard_errors(grads, expected) < 4.5
    assert standard_errors(grads, 1.1 * expected) > 4.5


def test_random_directions_are_unbiased_online():
    estimator = forward(
        toys.linear(), horizon=6, truncation=2, num_tasks=1, num_directions=1, stagger=False
    )
    grads = toys.summed_windows(
        estimator, THETA, jax.random.key(6), num_windows=6, num_samples=20_000
    )
    expected = 6 * toys.linear_gradient(6)
    assert standard_errors(grads, expected) < 4.5
    assert standard_errors(grads, 1.1 * expected) > 4.5


def test_random_directions_are_kept_through_a_trajectory():
    estimator = forward(
        toys.linear(), horizon=6, truncation=2, num_tasks=1, num_directions=1, stagger=False
    )

    @jax.jit
    def directions(state):
        def window(state, index):
            key = jax.random.fold_in(jax.random.key(8), index)
            _, state = estimator.estimate(THETA, state, (), key)
            return state, state.directions[0, 0]

        return jax.lax.scan(window, state, jnp.arange(30))[1]

    kept = np.asarray(directions(estimator.init(THETA, (), jax.random.key(7))))
    kept = kept.reshape(10, 3, 2)
    assert np.all(kept == kept[:, :1])
    assert len(np.unique(kept[:, 0], axis=0)) > 1


@pytest.mark.compiles
def test_a_start_that_depends_on_theta_is_seen(x64):
    def init(theta, data, key, *, num_steps=None):
        return theta**2

    system = toys.nonlinear()._replace(init=init)
    theta = jnp.asarray(THETA, jnp.float64)
    online = forward(system, horizon=4, truncation=4, num_tasks=3)
    state = online.init(theta, (), jax.random.key(9))
    expected = jax.grad(unroll.meta_loss(system, horizon=4))(theta, (), jax.random.key(10))
    for _ in range(2):
        estimate, state = online.estimate(theta, state, (), jax.random.key(11))
        assert relative_error(estimate.grad, expected) < 1e-10


def test_a_plain_function_is_a_problem_too():
    def loss(theta, data, key):
        return jnp.sum(data * theta["a"] ** 2) + theta["b"] ** 3

    theta = {"a": THETA, "b": jnp.array(2.0)}
    estimate, _ = forward(loss, columns_at_once=2).estimate(
        theta, (), jnp.array([2.0, 3.0]), jax.random.key(12)
    )
    np.testing.assert_allclose(estimate.grad["a"], 2 * jnp.array([2.0, 3.0]) * THETA, rtol=1e-6)
    np.testing.assert_allclose(estimate.grad["b"], 12.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("problem", "settings", "message"),
    [
        (toys.linear(), {}, "a System needs horizon="),
        (toys.linear(), {"truncation": 2}, "horizon=None"),
        (toys.linear(), {"truncation": 2, "horizon": 5}, "not a multiple of truncation=2"),
        (toys.linear(), {"truncation": 2, "horizon": 4, "objective": "last"}, "objective 'mean'"),
        (toys.linear(), {"horizon": 4, "num_directions": 0}, "num_directions must be"),
        (toys.linear(), {"horizon": 4, "directions": "uniform"}, "directions='uniform' is unknown"),
        (lambda theta, data, key: theta, {"truncation": 2}, "has no windows"),
    ],
)
def test_bad_settings_are_refused(problem, settings, message):
    with pytest.raises(ValueError, match=f"forward: .*{message}"):
        forward(problem, **settings)
