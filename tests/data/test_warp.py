import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from metaopt.data import _warp, random_warp
from tests.helpers import standard_errors

STILL = {"angle": 0.0, "scale": 0.0, "shift": 0.0, "displacement": 0.0}


@pytest.mark.compiles
def test_no_distortion_gives_back_the_images():
    images = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    np.testing.assert_allclose(random_warp(images, jax.random.key(1), **STILL), images, rtol=1e-6)


def test_images_are_read_bilinearly_as_scipy_does(x64):
    image = jax.random.normal(jax.random.key(0), (6, 5, 2))
    # Off the border, where SciPy interpolates towards its constant as well.
    positions = jax.random.uniform(jax.random.key(1), (6, 5, 2)) * jnp.array([[[5.0, 4.0]]])
    read = jax.jit(_warp._read)(image, positions)
    for channel in range(2):
        expected = scipy.ndimage.map_coordinates(
            np.asarray(image[..., channel]), np.moveaxis(positions, -1, 0), order=1
        )
        np.testing.assert_allclose(read[..., channel], expected, atol=1e-12)


def test_outside_is_zero():
    assert not np.any(_warp._read(jnp.ones((3, 3, 1)), jnp.full((3, 3, 2), -1.5)))


def test_a_shift_moves_the_centre_of_mass_by_its_standard_deviation(x64):
    blob = jnp.zeros((1, 25, 25, 1)).at[0, 11:14, 11:14].set(1.0)
    settings = {**STILL, "shift": 0.06}

    @jax.jit
    def centre(keys):
        moved = jax.vmap(lambda key: random_warp(blob, key, **settings)[0, ..., 0])(keys)
        return jnp.einsum("nij,i->n", moved, jnp.arange(25.0)) / moved.sum((1, 2)) - 12

    rows = np.asarray(centre(jax.random.split(jax.random.key(2), 2000)))
    assert standard_errors(rows**2, (0.06 * 25) ** 2) < 4
    assert standard_errors(rows**2, 1.2 * (0.06 * 25) ** 2) > 4


def test_a_turn_keeps_distances_and_a_scale_multiplies_them(x64):
    for settings, factor in (({"angle": 0.7}, 1.0), ({"scale": 0.3}, None)):
        key = jax.random.key(3)
        where = np.asarray(_warp._positions((7, 7), key, *({**STILL, **settings}.values())))
        length = np.linalg.norm(where - where[3, 3], axis=-1)
        grid = np.stack(np.meshgrid(*2 * [np.arange(7) - 3], indexing="ij"), axis=-1)
        ratio = (length / np.maximum(np.linalg.norm(grid, axis=-1), 1))[length > 0]
        np.testing.assert_allclose(ratio, factor or ratio[0], rtol=1e-10)
        assert factor or abs(ratio[0] - 1) > 1e-3


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="random_warp: inputs have shape"):
        random_warp(jnp.ones((3, 4)), jax.random.key(0))
