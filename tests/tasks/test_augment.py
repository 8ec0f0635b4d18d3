import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.core import TaskFamily
from metaopt.data import Pool
from tests.helpers import ravel, relative_error, standard_errors

LEVELS = ["global", "tensor", "parameter"]


def family():
    return tasks.mlp((3,), 3, hidden=(4,), activation="tanh", batch_size=4)


def batch():
    inputs = jax.random.normal(jax.random.key(9), (4, 3))
    return Pool(inputs, jnp.array([0, 1, 2, 0]))


def rows_family():
    """Reports which rows a batch holds, and has no parameters worth the name."""
    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros(2),
        batch=lambda data, task_params, key: data,
        loss=lambda params, task_params, batch, key: ((params**2).sum(), ()),
    )


@pytest.mark.parametrize("level", LEVELS)
def test_rescaling_keeps_the_initial_loss_and_scales_the_gradient(level):
    inner = family()
    outer = tasks.rescale(inner, level=level, low=1e-2, high=1e2)

    @jax.jit
    def both(key):
        key_task, key_init, key_loss = jax.random.split(key, 3)
        task = outer.sample(key_task)
        v = outer.init(task, key_init)
        w = inner.init(task.inner, jax.random.clone(key_init))
        differentiate = lambda f, p, t, k: jax.value_and_grad(  # noqa: E731
            lambda p: f.loss(p, t, batch(), k)[0]
        )(p)
        loss_v, grad_v = differentiate(outer, v, task, key_loss)
        loss_w, grad_w = differentiate(inner, w, (), jax.random.clone(key_loss))
        return loss_v, grad_v, loss_w, jax.tree.map(jnp.multiply, grad_w, task.scale)

    loss_v, grad_v, loss_w, expected = both(jax.random.key(0))
    assert relative_error(loss_v, loss_w) < 1e-5
    for actual, exact in zip(jax.tree.leaves(grad_v), jax.tree.leaves(expected), strict=True):
        assert relative_error(actual, exact) < 1e-5


@pytest.mark.parametrize(("level", "num_scales"), [("global", 1), ("tensor", 4), ("parameter", 31)])
def test_the_level_sets_how_many_scales_are_drawn(level, num_scales):
    scale = tasks.rescale(family(), level=level).sample(jax.random.key(0)).scale
    assert len(np.unique(ravel(scale))) == num_scales


def test_scales_are_log_uniform():
    outer = tasks.rescale(rows_family(), low=1e-3, high=1e1)
    scales = jax.jit(jax.vmap(outer.sample))(jax.random.split(jax.random.key(0), 4000)).scale
    log = np.log10(np.asarray(scales, np.float64))
    assert -3.0001 < log.min() < -2.9
    assert 0.9 < log.max() < 1.0001
    assert standard_errors(log, -1.0) < 4
    assert standard_errors((log + 1) ** 2, 4 / 3) < 4


@pytest.mark.usefixtures("x64")
def test_sgd_on_rescaled_parameters_is_sgd_with_a_rescaled_learning_rate():
    inner = family()
    outer = tasks.rescale(inner, level="global", low=3.0, high=3.0)

    def descend(problem, task, params, learning_rate, key):
        def step(params, key):
            (loss, _), grads = jax.value_and_grad(problem.loss, has_aux=True)(
                params, task, batch(), key
            )
            return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads), loss

        return jax.lax.scan(step, params, jax.random.split(key, 10))

    @jax.jit
    def both(key):
        key_task, key_init, key = jax.random.split(key, 3)
        task = outer.sample(key_task)
        v, losses_v = descend(outer, task, outer.init(task, key_init), 0.5 / 9, key)
        w0 = inner.init((), jax.random.clone(key_init))
        w, losses_w = descend(inner, (), w0, 0.5, jax.random.clone(key))
        return jax.tree.map(lambda x: 3.0 * x, v), w, losses_v, losses_w

    scaled_v, w, losses_v, losses_w = both(jax.random.key(0))
    assert losses_w[-1] < 0.9 * losses_w[0]
    assert relative_error(losses_v, losses_w) < 1e-12
    assert relative_error(scaled_v, w) < 1e-12


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (1.0, [0, 1, 2, 3, 4, 5]),
        (0.5, [0, 1, 2, 0, 1, 2]),
        (0.34, [0, 1, 2, 0, 1, 2]),
        (0.6, [0, 1, 2, 3, 0, 1]),
        (0.001, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_reduced_batches_repeat_their_first_rows(fraction, expected):
    outer = tasks.reduced_batch(rows_family(), low=fraction, high=fraction)
    task = outer.sample(jax.random.key(0))
    pool = (jnp.arange(6), jnp.arange(12.0).reshape(6, 2))
    index, values = outer.batch(pool, task, jax.random.key(1))
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(values, np.arange(12.0).reshape(6, 2)[expected])


@pytest.mark.compiles
def test_a_reduced_batch_gives_the_mean_over_the_smaller_batch():
    outer = tasks.reduced_batch(family(), low=0.5, high=0.5)
    task = outer.sample(jax.random.key(0))
    reduced = outer.batch(batch(), task, jax.random.key(1))
    params = outer.init(task, jax.random.key(2))
    key = jax.random.key(3)
    half = jax.tree.map(lambda x: x[:2], reduced)
    loss, _ = outer.loss(params, task, reduced, key)
    expected, _ = family().loss(params, (), half, jax.random.clone(key))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_fractions_differ_between_tasks_of_one_program():
    outer = tasks.reduced_batch(rows_family(), low=0.01, high=1.0)
    pool = jnp.arange(8)

    @jax.jit
    @jax.vmap
    def distinct(key):
        key_task, key_batch = jax.random.split(key)
        return outer.batch(pool, outer.sample(key_task), key_batch).max() + 1

    counts = np.asarray(distinct(jax.random.split(jax.random.key(0), 2000)))
    # ceil(8 u) with u ~ U[0.01, 1]: 1 with probability (1/8 - 0.01) / 0.99, else equally likely.
    assert set(counts) == set(range(1, 9))
    assert standard_errors(counts == 1, 0.115 / 0.99) < 4
    assert standard_errors(counts == 8, 0.125 / 0.99) < 4


@pytest.mark.compiles
def test_gradient_noise_leaves_the_loss_and_has_the_stated_spread():
    inner = family()
    outer = tasks.gradient_noise(inner, scale=0.3)
    task = outer.sample(jax.random.key(0))
    params = outer.init(task, jax.random.key(1))
    exact, expected = jax.value_and_grad(
        lambda p: inner.loss(p, (), batch(), jax.random.key(2))[0]
    )(params)

    @jax.jit
    @jax.vmap
    def noisy(key):
        return jax.value_and_grad(lambda p: outer.loss(p, task, batch(), key)[0])(params)

    losses, grads = noisy(jax.random.split(jax.random.key(3), 2000))
    np.testing.assert_allclose(losses, exact, rtol=1e-6)
    noise = np.concatenate(
        [
            (np.asarray(g) - np.asarray(e)[None]).reshape(2000, -1)
            for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
        ],
        axis=1,
    )
    assert standard_errors(noise, np.zeros(31)) < 4.5
    assert standard_errors(noise**2, np.full(31, 0.09)) < 4.5
    assert standard_errors(noise[:, :-1] * noise[:, 1:], np.zeros(30)) < 4.5


def test_a_range_of_noise_is_log_uniform_per_task():
    outer = tasks.gradient_noise(rows_family(), scale=(1e-3, 1e-1))
    scales = jax.jit(jax.vmap(outer.sample))(jax.random.split(jax.random.key(0), 4000)).scale
    log = np.log10(np.asarray(scales, np.float64))
    assert standard_errors(log, -2.0) < 4
    assert standard_errors((log + 2) ** 2, 1 / 3) < 4


def test_bfloat16_keeps_integers_and_returns_a_float32_loss():
    outer = tasks.bfloat16(family())
    params = outer.init((), jax.random.key(0))
    drawn = outer.batch(batch(), (), jax.random.key(1))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert drawn.inputs.dtype == jnp.bfloat16
    assert drawn.labels.dtype == jnp.int32
    loss, _ = outer.loss(params, (), drawn, jax.random.key(2))
    assert loss.dtype == jnp.float32
    # bfloat16 numbers are float32 numbers: upcasting them changes only later roundings.
    as_float32 = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    expected, _ = family().loss(as_float32, (), batch_as_float32(drawn), jax.random.key(2))
    assert abs(loss - expected) < 4 * 2**-8 * expected


def batch_as_float32(drawn):
    return drawn._replace(inputs=drawn.inputs.astype(jnp.float32))


def test_augmentations_compose():
    inner = tasks.quadratic(dim=3)
    outer = tasks.bfloat16(tasks.gradient_noise(tasks.rescale(inner, level="parameter"), scale=0.1))
    task = outer.sample(jax.random.key(0))
    assert isinstance(task, tasks.GradientNoiseTask)
    assert isinstance(task.inner, tasks.RescaledTask)
    assert isinstance(task.inner.inner, tasks.QuadraticTask)
    params = outer.init(task, jax.random.key(1))
    assert params.dtype == jnp.bfloat16
    loss, _ = outer.loss(params, task, (), jax.random.key(2))
    w = (params * task.inner.scale).astype(jnp.bfloat16)
    expected, _ = inner.loss(w, task.inner.inner, (), jax.random.key(3))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        outer.normalise(loss, task), inner.normalise(loss, task.inner.inner)
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: tasks.rescale(f, level="layer"), "rescale: level='layer' is unknown"),
        (lambda f: tasks.rescale(f, low=0.0), "rescale: low=0.0 is not positive"),
        (lambda f: tasks.rescale(f, low=20.0), "rescale: low=20.0 is above high=10.0"),
        (lambda f: tasks.reduced_batch(f, high=2.0), "reduced_batch: high=2.0 is above 1"),
        (lambda f: tasks.gradient_noise(f, scale=-1.0), "gradient_noise: scale=-1.0 is not"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(family())


def test_reducing_an_empty_batch_is_refused():
    outer = tasks.reduced_batch(tasks.quadratic(dim=2))
    task = outer.sample(jax.random.key(0))
    with pytest.raises(ValueError, match="reduced_batch: the pool has shapes"):
        outer.batch((), task, jax.random.key(1))
