import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from tests.tasks import transformer_numpy
from tests.tasks.training import losses_of_adam


@pytest.mark.usefixtures("x64")
def test_loss_matches_numpy():
    family = tasks.vision_transformer((4, 6, 2), 3, patch=2, depth=2, width=4, heads=2)
    params = jax.tree.map(lambda p: p + 0.1, family.init((), jax.random.key(0)))
    images = jax.random.uniform(jax.random.key(1), (5, 4, 6, 2))
    labels = np.arange(5) % 3
    plain = jax.tree.map(np.asarray, params)
    losses = []
    for image, label in zip(np.asarray(images), labels, strict=True):
        patches = [image[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2, 4)]
        x = np.stack(patches) @ plain["embed"]["w"] + plain["embed"]["b"] + plain["position"]
        x = transformer_numpy.blocks(x, plain, heads=2, causal=False)
        logits = x.mean(axis=0) @ plain["head"]["w"] + plain["head"]["b"]
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    batch = data.Pool(images, jnp.asarray(labels))
    loss, _ = jax.jit(family.loss)(params, (), batch, jax.random.key(2))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-12)


def test_without_positions_the_order_of_the_patches_does_not_matter():
    family = tasks.vision_transformer((4, 4, 1), 3, depth=1, width=8)
    params = family.init((), jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    swapped = jnp.roll(images, 2, axis=1)  # whole patches, once around

    @jax.jit
    def losses(params):
        labels = jnp.arange(5) % 3
        key = jax.random.key(2)
        return jnp.stack(
            [
                family.loss(params, (), data.Pool(x, labels), jax.random.clone(key))[0]
                for x in (images, swapped)
            ]
        )

    with_positions = losses(params)
    assert abs(with_positions[0] - with_positions[1]) > 1e-5
    without = losses(params | {"position": jnp.zeros((4, 8))})
    np.testing.assert_allclose(without[0], without[1], rtol=1e-6)


@pytest.mark.compiles
def test_the_loss_starts_near_that_of_a_uniform_guess_and_adam_lowers_it():
    family = tasks.vision_transformer((8, 8, 1), 10, patch=4, depth=1, width=16)
    losses = losses_of_adam(family, data.digits().train, num_steps=150)
    assert losses[0] < 1.5 * math.log(10)
    assert losses[-20:].mean() < 0.6


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((8, 8), {}, r"input_shape=\(8, 8\) is not \(height, width, channels\)"),
        ((8, 8, 1), {"patch": 3}, r"multiples of patch=3"),
        ((8, 8, 1), {"patch": 0}, "patch=0 is below 1"),
        ((8, 8, 1), {"depth": 0}, "depth=0 is below 1"),
        ((8, 8, 1), {"width": 10, "heads": 4}, "width=10 is not a multiple of heads=4"),
        ((8, 8, 1), {"batch_size": 0}, "batch_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(shape, settings, message):
    with pytest.raises(ValueError, match=f"vision_transformer: .*{message}|transformer: {message}"):
        tasks.vision_transformer(shape, 3, **settings)
