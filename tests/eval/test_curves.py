import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.core import Split
from metaopt.eval import learning_curve
from tests.eval.families import fit_pool, noisy_quadratic, quadratic, sgd_losses

CURVATURES = (0.5, 2.0)
NUM_STEPS = 12


@pytest.fixture(scope="module")
def grid_curves():
    """Learning rates 0.3 (converges), 1.5 (rises, stays finite), 1e6 (overflows)."""

    @jax.jit
    def run(grid, key):
        def one(learning_rate):
            return learning_curve(
                quadratic(*CURVATURES),
                optax.sgd(learning_rate),
                (),
                key,
                num_steps=NUM_STEPS,
                num_seeds=2,
                eval_every=4,
                num_eval_batches=3,
            )

        return jax.vmap(one)(grid)

    return jax.device_get(run(jnp.array([0.3, 1.5, 1e6]), jax.random.key(0)))


@pytest.mark.parametrize(("index", "learning_rate"), [(0, 0.3), (1, 1.5)])
def test_losses_are_those_of_gradient_descent(grid_curves, index, learning_rate):
    expected = np.array(sgd_losses(CURVATURES, learning_rate, NUM_STEPS))
    curves = jax.tree.map(lambda x: x[index], grid_curves)
    assert curves.train_loss.shape == (2, NUM_STEPS)
    for seed in range(2):
        np.testing.assert_allclose(curves.train_loss[seed], expected[:-1], rtol=2e-5)
        np.testing.assert_allclose(curves.validation_loss[seed], expected[4::4], rtol=2e-5)
    np.testing.assert_allclose(curves.initial_loss, expected[0], rtol=1e-6)
    np.testing.assert_allclose(curves.final_loss, expected[-1], rtol=2e-5)
    np.testing.assert_array_equal(curves.normalised.train, curves.train_loss)
    assert curves.validation_accuracy is None


def test_a_run_fails_when_it_rises_or_turns_non_finite(grid_curves):
    np.testing.assert_array_equal(grid_curves.failed, [[False] * 2, [True] * 2, [True] * 2])
    assert np.isfinite(grid_curves.train_loss[1]).all()


def test_divergence_stays_visible_in_the_raw_curve_and_is_finite_in_the_normalised(grid_curves):
    raw, normalised = grid_curves.train_loss[2], grid_curves.normalised.train[2]
    is_finite = np.isfinite(raw)
    assert is_finite[:, 0].all()
    assert not is_finite[:, -1].any()
    np.testing.assert_array_equal(normalised[is_finite], raw[is_finite])
    worst = np.finfo(np.float32).max
    assert (normalised[~is_finite] == worst).all()
    assert (grid_curves.normalised.final[2] == worst).all()
    assert (grid_curves.normalised.validation[2, :, -1] == worst).all()


def test_the_inner_pool_is_trained_on_and_the_outer_one_measured():
    @jax.jit
    def run(data, key):
        return learning_curve(fit_pool(), optax.sgd(0.5), data, key, num_steps=3, num_seeds=1)

    curves = run(Split(jnp.array(1.0), jnp.array(3.0)), jax.random.key(0))
    np.testing.assert_allclose(curves.train_loss[0], [0.5, 0.125, 0.03125])
    params = 1 - 0.5**3
    np.testing.assert_allclose(curves.final_loss, 0.5 * (params - 1) ** 2)
    np.testing.assert_allclose(curves.validation_loss[0], [0.5 * (params - 3) ** 2])
    np.testing.assert_allclose(curves.validation_accuracy[0], [1 - params])


def test_the_optimizer_is_given_the_loss():
    # Polyak's step f/|∇f|² · ∇f halves the parameter of ½p², so the loss falls by 4 each step.
    curves = learning_curve(
        quadratic(1.0), optax.polyak_sgd(10.0), (), jax.random.key(0), num_steps=5, num_seeds=1
    )
    np.testing.assert_allclose(curves.train_loss[0], 0.5 * 0.25 ** np.arange(5), rtol=1e-5)


def test_a_shorter_run_is_a_prefix_and_validations_change_nothing():
    @jax.jit
    def run(key):
        def curve(key, **settings):
            return learning_curve(
                noisy_quadratic(), optax.sgd(0.1), (), key, num_seeds=2, **settings
            )

        long = curve(key, num_steps=6, eval_every=2)
        return long, curve(jax.random.clone(key), num_steps=4)

    long, short = run(jax.random.key(1))
    np.testing.assert_allclose(long.train_loss[:, :4], short.train_loss, rtol=1e-6)
    np.testing.assert_allclose(long.validation_loss[:, 1], short.validation_loss[:, 0], rtol=1e-6)
    # Tasks and batches differ between seeds and between steps.
    assert len(np.unique(long.train_loss)) == long.train_loss.size


def test_an_average_is_measured_in_place_of_the_parameters_that_are_trained():
    average = optax.contrib.schedule_free_sgd(0.1)
    curves = learning_curve(
        quadratic(2.0),
        average,
        (),
        jax.random.key(0),
        num_steps=NUM_STEPS,
        num_seeds=1,
        num_eval_batches=1,
        eval_params=optax.contrib.schedule_free_eval_params,
    )
    # Schedule-Free with β = 0.9 by hand: z descends, x is its mean, gradients are taken between.
    x = z = 1.0
    trained = []
    for step in range(NUM_STEPS):
        y = 0.9 * x + 0.1 * z
        trained.append(y**2)
        z = z - 0.1 * 2 * y
        x = x + (z - x) / (step + 1)
    np.testing.assert_allclose(curves.train_loss[0], trained, rtol=1e-5)
    np.testing.assert_allclose(curves.final_loss, x**2, rtol=1e-4)
    np.testing.assert_allclose(curves.validation_loss[0], x**2, rtol=1e-4)
    assert abs(0.9 * x + 0.1 * z - x) > 0.01  # the two points differ


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_steps": 4, "num_seeds": 0}, "num_seeds must be at least 1"),
        ({"num_steps": 7, "eval_every": 3}, "try num_steps=6"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        learning_curve(quadratic(1.0), optax.sgd(0.1), (), jax.random.key(0), **settings)
