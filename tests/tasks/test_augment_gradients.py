import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.core import TaskFamily
from tests.helpers import ravel, relative_error, standard_errors

START = {"matrix": np.array([[1.0, -2.0], [0.5, 3.0]]), "scalar": np.array(-1.5)}
BATCH = {"matrix": np.array([[1.0, 2.0], [3.0, 0.5]]), "scalar": np.array(4.0)}
GRADIENT = np.array([1.0, -4.0, 1.5, 1.5, -6.0])  # START · BATCH


def bowl():
    """½ Σ c p², with curvatures c from the batch; its aux is the key's first number."""

    def loss(params, task_params, batch, key):
        del task_params
        parts = jax.tree.map(lambda p, c: jnp.sum(0.5 * c * p**2), params, batch)
        noise = jax.random.uniform(key) * 0
        return sum(jax.tree.leaves(parts)) + noise, {"drawn": noise}

    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jax.tree.map(jnp.asarray, START),
        batch=lambda data, task_params, key: jax.tree.map(jnp.asarray, BATCH),
        loss=loss,
    )


def run(family, key):
    """Loss and gradient at the start."""
    key_task, key_init, key_batch, key_loss = jax.random.split(key, 4)
    task = family.sample(key_task)
    params, batch = family.init(task, key_init), family.batch((), task, key_batch)
    return jax.value_and_grad(family.loss, has_aux=True)(params, task, batch, key_loss)


def many(family, number):
    """Gradients of many keys, one row each."""
    keys = jax.random.split(jax.random.key(0), number)
    (losses, _), grads = jax.jit(jax.vmap(lambda key: run(family, key)))(keys)
    np.testing.assert_allclose(losses, 0.5 * GRADIENT @ ravel(START), rtol=1e-6)
    leaves = [np.asarray(x).reshape(number, -1) for x in jax.tree.leaves(grads)]
    return np.concatenate(leaves, axis=1)


def test_normalising_divides_by_the_norm_of_all_tensors_together():
    (value, aux), grads = run(tasks.normalised_gradient(bowl()), jax.random.key(0))
    np.testing.assert_allclose(value, 0.5 * GRADIENT @ ravel(START), rtol=1e-6)
    assert aux["drawn"] == 0
    np.testing.assert_allclose(ravel(grads), GRADIENT / np.linalg.norm(GRADIENT), rtol=1e-6)


def test_a_zero_gradient_stays_zero_with_finite_derivatives():
    family = tasks.normalised_gradient(bowl())
    params = jax.tree.map(jnp.zeros_like, START)
    batch = family.batch((), (), jax.random.key(0))

    def total(params):
        grads = jax.grad(family.loss, has_aux=True)(params, (), batch, jax.random.key(1))[0]
        return sum(jnp.sum(g) for g in jax.tree.leaves(grads)), grads

    derivative, grads = jax.grad(total, has_aux=True)(params)
    np.testing.assert_array_equal(ravel(grads), np.zeros(5))
    assert np.isfinite(ravel(derivative)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.compiles
def test_the_new_gradient_has_its_own_derivatives_in_both_modes():
    family = tasks.normalised_gradient(bowl())
    curvature, start = ravel(BATCH), ravel(START)
    batch = family.batch((), (), jax.random.key(0))

    def gradient(flat, scale):
        params = {"matrix": flat[:4].reshape(2, 2), "scalar": flat[4]}
        scaled = jax.tree.map(lambda c: scale * c, batch)
        grads = jax.grad(family.loss, has_aux=True)(params, (), scaled, jax.random.key(1))[0]
        return jnp.concatenate([grads["matrix"].ravel(), grads["scalar"][None]])

    unit = GRADIENT / np.linalg.norm(GRADIENT)
    expected = (np.eye(5) - np.outer(unit, unit)) @ np.diag(curvature) / np.linalg.norm(GRADIENT)
    for mode in (jax.jacfwd, jax.jacrev):
        by_params, by_scale = jax.jit(mode(gradient, argnums=(0, 1)))(jnp.asarray(start), 1.0)
        assert relative_error(by_params, expected) < 1e-10
        np.testing.assert_allclose(by_scale, np.zeros(5), atol=1e-12)
    # The value's derivative by the batch is untouched.
    by_batch = jax.grad(lambda b: family.loss(START, (), b, jax.random.key(2))[0])(batch)
    np.testing.assert_allclose(ravel(by_batch), 0.5 * start**2, rtol=1e-12)


def test_the_es_estimate_is_unbiased_for_a_quadratic():
    # Antithetic differences of a quadratic are exact, so that σ adds no bias.
    estimates = many(tasks.es_gradient(bowl(), sigma=0.1, num_pairs=2), 4000)
    assert standard_errors(estimates, GRADIENT) < 4.5
    assert standard_errors(estimates, 1.1 * GRADIENT) > 4.5
    # Cov = (‖g‖² I + g gᵀ) / N for N pairs.
    spread = (GRADIENT @ GRADIENT + GRADIENT**2) / 2
    assert standard_errors((estimates - GRADIENT) ** 2, spread) < 4.5


def test_the_es_estimate_follows_the_smoothed_loss():
    # Of |x|³ smoothed by σ, the slope at 0 is 0 and at x it is 3 x² + 3 σ²; the plain one is 3 x².
    cubic = bowl()._replace(
        init=lambda task_params, key: jnp.array(0.5),
        loss=lambda params, task_params, batch, key: (params**3, ()),
    )
    family = tasks.es_gradient(cubic, sigma=0.4, num_pairs=1)
    keys = jax.random.split(jax.random.key(0), 4000)
    grads = jax.jit(jax.vmap(lambda key: run(family, key)[1]))(keys)
    assert standard_errors(grads, 0.75 + 3 * 0.16) < 4
    assert standard_errors(grads, 0.75) > 4


def test_a_range_of_scales_is_log_uniform_per_task():
    family = tasks.es_gradient(bowl(), sigma=(1e-3, 1e-1))
    sigma = jax.jit(jax.vmap(family.sample))(jax.random.split(jax.random.key(0), 4000)).sigma
    log = np.log10(np.asarray(sigma, np.float64))
    assert standard_errors(log, -2.0) < 4
    assert standard_errors((log + 2) ** 2, 1 / 3) < 4


def test_orthogonal_directions_that_span_the_space_change_nothing():
    family = tasks.random_directions(bowl(), num_directions=7, orthogonal=True)
    np.testing.assert_allclose(many(family, 3), np.tile(GRADIENT, (3, 1)), rtol=1e-5)


def test_fewer_orthogonal_directions_project():
    kept = many(tasks.random_directions(bowl(), num_directions=2, orthogonal=True), 4000)
    # A projection P has g·Pg = ‖Pg‖², and a random one of rank 2 in 5 dimensions E[P] = 2/5 I.
    np.testing.assert_allclose(kept @ GRADIENT, np.sum(kept**2, axis=1), rtol=1e-4)
    assert standard_errors(kept, 2 / 5 * GRADIENT) < 4.5
    assert standard_errors(kept, 3 / 5 * GRADIENT) > 4.5


def test_independent_directions_have_the_stated_mean():
    kept = many(tasks.random_directions(bowl(), num_directions=3), 4000)
    assert standard_errors(kept, 3 / 5 * GRADIENT) < 4.5
    assert standard_errors(kept, 4 / 5 * GRADIENT) > 4.5


def test_one_signed_direction_is_a_unit_vector_that_ascends():
    kept = many(tasks.random_directions(bowl(), num_directions=1, sign=True), 500)
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), 1, rtol=1e-5)
    assert (kept @ GRADIENT > 0).all()


@pytest.mark.parametrize(
    "augment",
    [
        lambda f: tasks.es_gradient(f, sigma=0.01, num_pairs=1),
        tasks.normalised_gradient,
        lambda f: tasks.random_directions(f, num_directions=2),
        lambda f: tasks.random_directions(f, num_directions=2, orthogonal=True),
    ],
)
def test_gradients_keep_the_dtype_of_bfloat16_parameters(augment):
    _, grads = jax.eval_shape(
        lambda key: run(augment(tasks.bfloat16(bowl())), key), jax.random.key(0)
    )
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: tasks.es_gradient(f, num_pairs=0), "es_gradient: num_pairs=0 is below 1"),
        (lambda f: tasks.es_gradient(f, sigma=0.0), "es_gradient: low=0.0 is not positive"),
        (lambda f: tasks.es_gradient(f, sigma=(1.0, 0.1)), "es_gradient: low=1.0 is above"),
        (lambda f: tasks.random_directions(f, num_directions=0), "num_directions=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(bowl())
