import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import adapt, maml
from metaopt.data import ClassPool
from metaopt.tasks import coordinate_images, episodes
from tests.helpers import central_differences, relative_error, standard_errors

IMAGES, HEIGHT, WIDTH, CHANNELS = 4, 3, 5, 2
SHAPE = (IMAGES, HEIGHT, WIDTH, CHANNELS)


def images():
    """Values that say where they are from."""
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    return jnp.asarray(values / values.max(), float)


def test_support_pixels_are_a_share_of_all_with_their_coordinates(x64):
    family = coordinate_images(SHAPE, support_share=0.4)
    pools = episodes(images())
    task_params = family.sample(jax.random.key(0))
    support, query = (family.batch(p, task_params, jax.random.key(1)) for p in pools)
    assert support.inputs.shape == (6, 2)
    assert len(set(map(tuple, np.asarray(support.inputs)))) == 6
    assert query.inputs.shape == (15, 2)
    image = np.asarray(images())[task_params.image]
    for batch in (support, query):
        row = np.round((np.asarray(batch.inputs)[:, 0] + 1) * HEIGHT / 2 - 0.5).astype(int)
        column = np.round((np.asarray(batch.inputs)[:, 1] + 1) * WIDTH / 2 - 0.5).astype(int)
        np.testing.assert_array_equal(batch.labels, image[row, column])
    np.testing.assert_allclose(query.inputs[0], [-2 / 3, -0.8])
    np.testing.assert_allclose(query.inputs[-1], [2 / 3, 0.8])


def test_images_and_pixels_are_uniform():
    family = coordinate_images(SHAPE, support_share=0.4)
    drawn = jax.jit(jax.vmap(family.sample))(jax.random.split(jax.random.key(0), 3000))
    image = np.asarray(drawn.image)[:, None] == np.arange(IMAGES)
    assert standard_errors(image, np.full(IMAGES, 0.25)) < 4
    assert standard_errors(image[:, 0], 0.3) > 4
    pixel = (np.asarray(drawn.support)[:, :, None] == np.arange(15)).any(1)
    assert standard_errors(pixel, np.full(15, 0.4)) < 4.5
    assert standard_errors(pixel[:, 0], 0.46) > 4


@pytest.mark.parametrize("field", ["fourier", "siren"])
def test_the_loss_is_the_squared_error_of_the_network(x64, field):
    scale, features = 2.0, 3
    family = coordinate_images(
        SHAPE, field=field, hidden=(4, 3), num_features=features, scale=scale, seed=7
    )
    task_params = family.sample(jax.random.key(0))
    params = family.init(task_params, jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1, params)
    batch = family.batch(episodes(images()).outer, task_params, jax.random.key(2))
    layers = [(np.asarray(layer["w"]), np.asarray(layer["b"])) for layer in params]
    x = np.asarray(batch.inputs)
    if field == "fourier":
        angles = x @ (scale * np.random.default_rng(7).normal(size=(2, features)))
        x = np.concatenate([np.cos(angles), np.sin(angles)], 1)
        for w, b in layers[:-1]:
            x = np.maximum(x @ w + b, 0)
        x = 1 / (1 + np.exp(-(x @ layers[-1][0] + layers[-1][1])))
    else:
        for w, b in layers[:-1]:
            x = np.sin(scale * (x @ w + b))
        x = 0.5 + x @ layers[-1][0] + layers[-1][1]
    loss, aux = jax.jit(family.loss)(params, task_params, batch, jax.random.key(3))
    expected = ((x - np.asarray(batch.labels)) ** 2).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(aux.psnr, -10 * np.log10(expected), rtol=1e-12)


def test_sines_start_from_the_published_ranges(x64):
    width, omega = 256, 30.0
    family = coordinate_images((1, 16, 16, 1), field="siren", hidden=(width,) * 3, scale=omega)
    params = family.init(family.sample(jax.random.key(0)), jax.random.key(1))
    assert [layer["w"].shape for layer in params] == [(2, 256), (256, 256), (256, 256), (256, 1)]
    for fan_in, layer in zip((2, width, width), params, strict=False):
        limit = 1 / 2 if fan_in == 2 else np.sqrt(6 / width) / omega
        samples = np.asarray(layer["w"]).ravel()
        assert np.abs(samples).max() <= limit
        assert standard_errors(samples**2, limit**2 / 3) < 4
        assert standard_errors(samples**2, 1.4 * limit**2 / 3) > 4
        assert np.abs(layer["b"]).max() <= 1 / np.sqrt(fan_in)


def test_adaptation_sees_the_support_pixels_only(x64):
    family = coordinate_images(SHAPE, hidden=(4,), num_features=3, support_share=0.4)
    pools, task_params = episodes(images()), family.sample(jax.random.key(0))
    theta = family.init(task_params, jax.random.key(1))
    hidden = jnp.ones(HEIGHT * WIDTH, bool).at[task_params.support].set(False)
    run = jax.jit(adapt(family, optax.sgd(1.0), num_steps=2))

    def adapted(values):
        support = family.batch(episodes(values).inner, task_params, jax.random.key(2))
        return run(theta, task_params, support, jax.random.key(3))

    changed = jnp.where(hidden.reshape(1, HEIGHT, WIDTH, 1), 0.0, images())
    assert relative_error(adapted(changed), adapted(images())) == 0
    assert relative_error(adapted(images() ** 2), adapted(images())) > 1e-3
    assert family.batch(pools.inner, task_params, jax.random.key(2)).labels.shape == (6, 2)


@pytest.mark.compiles
@pytest.mark.parametrize("field", ["fourier", pytest.param("siren", marks=pytest.mark.slow)])
def test_meta_gradients_agree_with_central_differences(x64, field):
    family = coordinate_images(
        SHAPE, field=field, hidden=(3, 2), num_features=2, scale=2.0, support_share=0.5
    )
    theta = family.init(family.sample(jax.random.key(0)), jax.random.key(1))
    estimator = maml(family, optax.sgd(0.5), num_steps=2, num_tasks=1).estimator

    def estimate(theta):
        return estimator.estimate(theta, (), episodes(images()), jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    grad = jax.jit(lambda theta: estimate(theta).grad)(theta)
    assert relative_error(grad, differences) < 1e-6


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((4, 3, 5), {}, r"is not \(images, height, width, channels\)"),
        ((4, 3, 0, 1), {}, r"is not \(images, height, width, channels\)"),
        (SHAPE, {"field": "gauss"}, "field='gauss' is unknown"),
        (SHAPE, {"support_share": 0.0}, "support_share=0.0 is not above 0"),
        (SHAPE, {"scale": -1.0}, "scale=-1.0 is not positive"),
        (SHAPE, {"num_features": 0}, "num_features=0 is below 1"),
        (SHAPE, {"field": "siren", "hidden": ()}, r"hidden=\(\) must hold positive widths"),
        (SHAPE, {"hidden": (0,)}, r"hidden=\(0,\) has a width below 1"),
    ],
)
def test_bad_settings_are_refused(shape, settings, message):
    with pytest.raises(ValueError, match=f"coordinate_images: .*{message}"):
        coordinate_images(shape, **settings)


def test_other_data_are_refused():
    family = coordinate_images(SHAPE)
    task_params = family.sample(jax.random.key(0))
    labelled = episodes(ClassPool(images())).inner
    for data in (images(), episodes(images()[:2]).inner, labelled):
        with pytest.raises(ValueError, match=r"pass metaopt\.tasks\.episodes\(images\)"):
            family.batch(data, task_params, jax.random.key(1))
