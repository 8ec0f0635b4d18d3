import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.tasks._black_box import FUNCTIONS
from tests.helpers import standard_errors

NAMES = tuple(FUNCTIONS)
OPTIMUM = 420.96875


def textbook(name, z):
    """The usual definitions, term by term."""
    d = len(z)
    u = np.arange(d) / (d - 1)
    y = z + 1
    large = 100 * z
    deceptive = OPTIMUM + large

    def s(y):
        return y * np.sin(np.sqrt(np.abs(y)))

    return {
        "sphere": z @ z,
        "ellipsoid": sum(1e6 ** u[i] * z[i] ** 2 for i in range(d)),
        "discus": 1e6 * z[0] ** 2 + z[1:] @ z[1:],
        "cigar": z[0] ** 2 + 1e6 * z[1:] @ z[1:],
        "powers": sum(abs(z[i]) ** (2 + 4 * u[i]) for i in range(d)),
        "rosenbrock": sum(
            100 * (y[i] ** 2 - y[i + 1]) ** 2 + (y[i] - 1) ** 2 for i in range(d - 1)
        ),
        "rastrigin": 10 * d + np.sum(z**2 - 10 * np.cos(2 * np.pi * z)),
        "ackley": 20
        + np.e
        - 20 * np.exp(-0.2 * np.sqrt(z @ z / d))
        - np.exp(np.mean(np.cos(2 * np.pi * z))),
        "griewank": 1
        + large @ large / 4000
        - np.prod(np.cos(large / np.sqrt(np.arange(1, d + 1)))),
        "schwefel": d * s(OPTIMUM)
        - np.sum(s(deceptive))
        + np.sum(np.maximum(np.abs(deceptive) - 500, 0) ** 2) / 100,
    }[name]


@pytest.mark.compiles
def test_functions_are_those_of_the_textbook_with_the_right_derivatives(x64):
    points = jax.random.uniform(jax.random.key(0), (4, 5), minval=-5.0, maxval=5.0)

    @jax.jit
    def everything(points):
        basis = 1e-5 * jnp.eye(5)

        def differences(function, z):
            high, low = (jax.vmap(function)(z[None] + sign * basis) for sign in (1, -1))
            return (high - low) / 2e-5

        return {
            name: (
                jax.vmap(f)(points),
                jax.vmap(jax.grad(f))(points),
                jax.vmap(lambda z, f=f: differences(f, z))(points),
                jax.value_and_grad(f)(jnp.zeros(5)),
            )
            for name, f in FUNCTIONS.items()
        }

    for name, (values, grads, differences, (least, flat)) in everything(points).items():
        expected = [textbook(name, np.asarray(z)) for z in points]
        np.testing.assert_allclose(values, expected, rtol=1e-10, err_msg=name)
        error = np.abs(grads - differences).max(axis=1) / np.abs(differences).max(axis=1)
        assert error.max() < 1e-6, name
        assert abs(least) < 1e-12, name
        if name == "schwefel":  # Its optimum is known to five decimals only.
            assert np.abs(flat).max() < 1e-3
        else:
            np.testing.assert_allclose(flat, 0, atol=1e-12, err_msg=name)


@pytest.mark.compiles
def test_the_optimum_is_a_minimum_in_single_precision():
    family = tasks.black_box(dim=6)

    def around_optimum(key):
        task = family.sample(key)
        key_near, key_far, key_loss = jax.random.split(jax.random.fold_in(key, 1), 3)
        near = task.optimum + 0.01 * jax.random.normal(key_near, (6,))
        far = family.init(task, key_far)
        points = jnp.stack([task.optimum, near, far])
        losses = jax.vmap(lambda x: family.loss(x, task, (), key_loss)[0])(points)
        return task.function, losses, jnp.abs(task.rotation @ task.rotation.T - jnp.eye(6)).max()

    keys = jax.random.split(jax.random.key(0), 60)
    functions, losses, errors = jax.jit(jax.vmap(around_optimum))(keys)
    assert set(np.asarray(functions).tolist()) == set(range(len(NAMES)))
    assert errors.max() < 1e-5
    # The terms of schwefel are of size 420 and cancel up to their rounding; the others vanish.
    deceptive = functions == NAMES.index("schwefel")
    rounding = np.finfo(np.float32).eps * np.where(deceptive, 6 * 420, 1)
    assert (np.abs(losses[:, 0]) <= rounding).all()
    assert (losses[:, 1] > losses[:, 0]).all()
    assert (losses[:, 2] > losses[:, 1]).all()


@pytest.mark.compiles
def test_functions_are_drawn_evenly_and_the_scale_is_typical():
    family = tasks.black_box(dim=3, functions=("sphere", "rastrigin"), rotate=False)

    def draw(key):
        task = family.sample(key)
        starts = jax.vmap(lambda k: family.init(task, k))(
            jax.random.split(jax.random.fold_in(key, 1), 64)
        )
        key_loss = jax.random.fold_in(key, 2)
        losses = jax.vmap(lambda x: family.loss(x, task, (), key_loss)[0])(starts)
        return task.function, task.optimum, jnp.mean(losses) - task.scale, task.rotation

    keys = jax.random.split(jax.random.key(0), 1000)
    functions, optima, differences, rotations = jax.jit(jax.vmap(draw))(keys)
    assert standard_errors(functions, 0.5) < 4.5
    assert standard_errors(functions, 0.6) > 4.5
    assert standard_errors(optima**2, [16 / 3] * 3) < 4.5
    assert standard_errors(optima**2, [25 / 3] * 3) > 4.5
    assert standard_errors(differences, 0) < 4.5
    assert standard_errors(differences, 2) > 4.5
    np.testing.assert_array_equal(rotations[0], np.eye(3))


def test_the_normalised_loss_is_a_logarithm_relative_to_the_scale():
    family = tasks.black_box(dim=3)
    task = family.sample(jax.random.key(0))
    for relative, expected in ((1.0, 0.0), (1e-4, np.log(1e-4)), (0.0, np.log(1e-8))):
        np.testing.assert_allclose(
            family.normalise(relative * task.scale, task), expected, rtol=1e-3, atol=1e-6
        )


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="black_box: dim=1 is below 2"):
        tasks.black_box(dim=1)
    for functions in ((), ("sphere", "sphear")):
        with pytest.raises(ValueError, match="black_box: functions=.* choose from"):
            tasks.black_box(dim=3, functions=functions)
