import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import unroll
from metaopt.core import StepInfo, System
from metaopt.estimators import es, pes, truncated_es
from metaopt.estimators._pes import carried_noise, window_weights
from metaopt.estimators._shared import perturbation
from tests.estimators import toys
from tests.helpers import ravel, standard_errors

REFERENCE = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "reference"
WINDOW = 5


def counter_gradient(*, horizon, loss_at=None, boundary="exclusive", num_samples=100_000):
    """Samples of the gradient of one trajectory's summed loss, from windows of five steps."""
    system = unroll.auto_reset(toys.counter(loss_at), horizon=horizon)
    num_windows = np.lcm(horizon, WINDOW) // WINDOW
    num_trajectories = np.lcm(horizon, WINDOW) // horizon
    estimator = pes(
        system, sigma=1.0, truncation=WINDOW, horizon=None, num_tasks=1, boundary=boundary
    )
    grads = toys.summed_windows(
        estimator,
        jnp.zeros(()),
        jax.random.key(0),
        num_windows=num_windows,
        num_samples=num_samples,
    )
    return grads * WINDOW / num_trajectories


@pytest.mark.compiles
@pytest.mark.parametrize("horizon", [20, 24, 3])
def test_summed_loss_is_unbiased_wherever_trajectories_end(horizon):
    grads = counter_gradient(horizon=horizon)
    expected = horizon * (horizon + 1) / 2
    assert standard_errors(grads, expected) < 4
    assert standard_errors(grads, 0.93 * expected) > 4


@pytest.mark.compiles
def test_terminal_loss_is_unbiased():
    grads = counter_gradient(horizon=20, loss_at=20)
    assert standard_errors(grads, 20.0) < 4
    assert standard_errors(grads, 0.9 * 20.0) > 4


@pytest.mark.compiles
def test_inclusive_boundary_has_the_known_bias():
    # The last loss of a trajectory meets only the newest of four noises, a quarter of its effect.
    grads = counter_gradient(horizon=20, loss_at=20, boundary="inclusive")
    assert standard_errors(grads, 20.0) > 10
    assert standard_errors(grads, 5.0) < 4


def test_horizon_between_windows_agrees_with_resets_inside_them():
    estimator = pes(
        toys.counter(), sigma=1.0, truncation=WINDOW, horizon=20, num_tasks=1, stagger=False
    )
    grads = WINDOW * toys.summed_windows(
        estimator, jnp.zeros(()), jax.random.key(1), num_windows=8, num_samples=50_000
    )
    assert standard_errors(grads, 2 * 210.0) < 4
    assert standard_errors(grads, 2 * 200.0) > 4


@pytest.mark.compiles
def test_staggered_tasks_are_unbiased_on_average_over_phases():
    estimator = pes(toys.counter(), sigma=1.0, truncation=WINDOW, horizon=20, num_tasks=4)

    def one(key):
        key_init, key_burn, key_run = jax.random.split(key, 3)
        theta = jnp.zeros(())
        state = estimator.init(theta, (), key_init)

        def burn(state, index):
            return estimator.estimate(theta, state, (), jax.random.fold_in(key_burn, index))[1], ()

        state, _ = jax.lax.scan(burn, state, jnp.arange(4))
        return estimator.estimate(theta, state, (), key_run)[0].grad

    grads = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 20_000))
    assert standard_errors(20 * grads, 210.0) < 4
    assert standard_errors(20 * grads, 195.0) > 4


def test_effects_beyond_the_window_are_seen():
    theta = jnp.array([0.3, -0.2])
    estimator = pes(toys.linear(), sigma=0.5, truncation=3, horizon=12, num_tasks=1, stagger=False)
    grads = toys.summed_windows(
        estimator, theta, jax.random.key(3), num_windows=4, num_samples=20_000
    )
    expected = 4 * toys.linear_gradient(12)
    assert standard_errors(grads, expected) < 4.5
    assert standard_errors(grads, 1.1 * expected) > 4.5


CURVATURES = np.geomspace(1, 0.01, 20)


def descent_on_a_noisy_quadratic() -> System:
    """Gradient descent with noise of variance h from 3; theta is the logarithm of its rate."""
    curvatures = jnp.asarray(CURVATURES, jnp.float32)

    def init(theta, data, key, *, num_steps=None):
        return jnp.full(20, 3.0)

    def step(theta, state, data, key):
        noise = jnp.sqrt(curvatures) * jax.random.normal(key, (20,))
        state = state - jnp.exp(theta) * (curvatures * state + noise)
        return state, StepInfo(0.5 * jnp.sum(curvatures * state**2), jnp.array(False))

    return System(init, step)


def smoothed_slope(theta, sigma, horizon) -> float:
    """Of the expected mean loss, by the recursion of the second moments and quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(31)

    def mean_loss(log_rate):
        moments, losses = np.full(20, 9.0), []
        for _ in range(horizon):
            rate = np.exp(log_rate)
            moments = (1 - rate * CURVATURES) ** 2 * moments + rate**2 * CURVATURES
            losses.append(0.5 * CURVATURES @ moments)
        return np.mean(losses)

    values = np.array([mean_loss(theta + sigma * x) for x in points])
    return float(np.sum(weights * values * points) / np.sum(weights) / sigma)


@pytest.mark.slow
def test_windows_of_ten_see_the_learning_rate_of_a_hundred_steps_and_truncated_es_does_not():
    """4,096 particles each; the system of Wu et al. 2018, arXiv:1803.02021."""
    theta, sigma = np.log(0.5), 0.1
    expected = smoothed_slope(theta, sigma, horizon=100)

    def slopes(make):
        estimator = make(
            descent_on_a_noisy_quadratic(),
            sigma=sigma,
            truncation=10,
            horizon=100,
            num_tasks=1,
            stagger=False,
        )
        grads = toys.summed_windows(
            estimator,
            jnp.asarray(theta, jnp.float32),
            jax.random.key(0),
            num_windows=10,
            num_samples=4096,
        )
        return grads / 10

    assert standard_errors(slopes(pes), expected) < 3
    assert standard_errors(slopes(truncated_es), expected) > 3


@pytest.mark.compiles
def test_one_window_per_trajectory_is_es():
    theta = jnp.array([0.3, -0.2])
    _, key_tasks = jax.random.split(jax.random.key(4))
    full = es(toys.nonlinear(), sigma=0.1, horizon=6, num_tasks=3)
    windowed = pes(toys.nonlinear(), sigma=0.1, truncation=6, horizon=6, num_tasks=3)
    state = windowed.init(theta, (), jax.random.key(5))
    expected, _ = full.estimate(theta, (), (), jax.random.key(4))
    for _ in range(2):  # The second trajectory must not see the first one's noise.
        actual, state = windowed.estimate(theta, state, (), jax.random.clone(key_tasks))
        np.testing.assert_allclose(actual.grad, expected.grad, rtol=1e-5)
        np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-6)


def test_noise_is_cleared_where_a_trajectory_ends():
    estimator = pes(toys.linear(), truncation=2, horizon=4, num_tasks=3, stagger=False)
    theta = jnp.ones(2)
    state = estimator.init(theta, (), jax.random.key(6))
    key_first, key_second = jax.random.split(jax.random.key(7))
    _, state = estimator.estimate(theta, state, (), key_first)
    assert np.all(np.abs(state.noise) > 0)
    _, state = estimator.estimate(theta, state, (), key_second)
    np.testing.assert_array_equal(state.noise, 0)


@pytest.mark.compiles
def test_a_diverging_task_does_not_touch_the_others():
    theta = jnp.array([0.3, -0.2])
    key_init, key_window = jax.random.split(jax.random.key(8))
    estimator = pes(toys.fragile(), truncation=6, horizon=6, num_tasks=8, stagger=False)
    state = estimator.init(theta, (), key_init)
    broken = np.asarray(state.arms.state.inner[1][:, 0])
    assert 0 < broken.sum() < 8
    estimate, _ = estimator.estimate(theta, state, (), key_window)

    expected = np.zeros(2)
    for key in jax.random.split(jax.random.clone(key_window), 8)[~broken]:
        key_eps, _ = jax.random.split(key)
        eps = perturbation(theta, 0.01, key_eps)
        expected += np.asarray(eps * (toys.linear_gradient(6) @ eps) / 0.01**2) / 8
    np.testing.assert_allclose(estimate.grad, expected, rtol=2e-3)
    np.testing.assert_allclose(estimate.info.frozen, broken.mean())


@pytest.mark.skipif(not REFERENCE.exists(), reason="reference vectors are not beside the checkout")
@pytest.mark.parametrize(("prefix", "sign"), [("pes", None), ("pes_sign0.5", 0.5)])
def test_inclusive_boundary_repeats_the_reference_arithmetic(prefix, sign):
    reference = np.load(REFERENCE / "pes_grad_reference.npz")
    sigma = float(reference["std"])
    difference = reference["loss_pos"] - reference["loss_neg"]
    eps = {name: reference[f"eps/{name}"] for name in "ab"}
    acc = {name: reference[f"acc/{name}"] for name in "ab"}
    done = reference["is_done"].astype(bool)

    def one_task(difference, done, mask, acc, eps):
        old, new, _ = window_weights(difference, done, mask, "inclusive", sign)
        noise = jax.tree.map(jnp.add, acc, eps)
        grad = jax.tree.map(lambda x, e: (old * x + new * e) / (2 * sigma**2), noise, eps)
        return grad, carried_noise(noise, eps, done, "inclusive")

    grads, noise = jax.vmap(one_task, in_axes=(1, 1, 1, 0, 0))(
        difference, done, reference["mask"], acc, eps
    )
    for name in "ab":
        expected = reference[f"{prefix}/grad/{name}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(grads[name].mean(axis=0), expected, atol=2e-6 * scale)
        np.testing.assert_allclose(noise[name], reference[f"{prefix}/new_acc/{name}"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": -0.1}, "sigma must be positive"),
        ({"num_tasks": 0}, "num_tasks must be an integer of at least 1"),
        ({"horizon": 100, "truncation": 30}, "try horizon=90 or truncation=25"),
        ({"boundary": "sharp"}, "boundary='sharp' is unknown"),
        ({"truncation": 0}, "truncation must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"pes: .*{message}"):
        pes(toys.linear(), **{"truncation": 2, "horizon": 4, **settings})


def test_integer_theta_is_refused():
    estimator = pes(toys.linear(), truncation=2, horizon=4)
    with pytest.raises(TypeError, match="pes: theta is int32"):
        estimator.init(jnp.ones(2, jnp.int32), (), jax.random.key(0))


@pytest.mark.compiles
def test_sigma_is_traced_and_sweepable():
    theta = jnp.array([0.3, -0.2])

    @jax.jit
    def grad(sigma, key):
        key_init, key_window = jax.random.split(key)
        estimator = pes(toys.nonlinear(), sigma=sigma, truncation=2, horizon=4, num_tasks=2)
        state = estimator.init(theta, (), key_init)
        return estimator.estimate(theta, state, (), key_window)[0].grad

    sigmas = jnp.array([0.01, 0.1])
    swept = jax.vmap(grad, in_axes=(0, None))(sigmas, jax.random.key(9))
    for row, sigma in zip(swept, sigmas, strict=True):
        np.testing.assert_allclose(row, grad(sigma, jax.random.key(9)), rtol=2e-4)
    assert np.abs(ravel(swept[0]) - ravel(swept[1])).max() > 0
