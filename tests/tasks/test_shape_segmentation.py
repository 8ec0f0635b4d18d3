import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import adapt, few_shot_scores, maml
from metaopt.tasks import ShapeTask, shape_segmentation
from metaopt.tasks._shape_segmentation import draw_scene, mask_loss, outline
from tests.helpers import central_differences, relative_error, standard_errors


def test_a_shape_without_harmonics_is_a_disc(x64):
    disc = ShapeTask(jnp.zeros(3), jnp.ones(3))
    inside = np.asarray(outline(disc, jnp.array([0.2, -0.1]), 0.5, 0.3, 200))
    ticks = (2 * np.arange(200) + 1) / 200 - 1
    rows, columns = np.meshgrid(ticks, ticks, indexing="ij")
    np.testing.assert_array_equal(inside, np.hypot(rows - 0.2, columns + 0.1) < 0.5)
    assert abs(inside.mean() * 4 - np.pi * 0.25) < 1e-3


def test_harmonics_bend_the_outline(x64):
    # One harmonic of order 3: along its crests the radius is r·eᵃ, between them r·e⁻ᵃ.
    shape = ShapeTask(jnp.array([0.0, 0.4, 0.0]), jnp.array([0.0, 0.9, 0.0]))
    turn = 0.2
    inside = np.asarray(outline(shape, jnp.zeros(2), 0.5, turn, 400))
    for crest in range(6):
        angle = turn + (crest * np.pi - 0.9) / 3
        radius = 0.5 * np.exp(0.4 * (-1) ** crest)
        for factor, expected in ((0.96, True), (1.04, False)):
            row, column = factor * radius * np.array([np.sin(angle), np.cos(angle)])
            i, j = (int((x + 1) * 200) for x in (row, column))
            assert inside[i, j] == expected


def test_scenes_have_the_stated_places_and_sizes():
    disc = ShapeTask(jnp.zeros(3), jnp.zeros(3))
    draw = jax.jit(jax.vmap(lambda key: draw_scene(disc, key, 16, 1)))
    pool = draw(jax.random.split(jax.random.key(0), 600))
    images, masks = np.asarray(pool.inputs)[..., 0], np.asarray(pool.labels)
    assert images.shape == masks.shape == (600, 16, 16)
    assert set(np.unique(masks)) == {0.0, 1.0}
    # No disc leaves the image, and centres are uniform over whole pixels: areas are unbiased.
    areas = masks.sum((1, 2))
    expected = np.pi * 64 * (0.4**3 - 0.25**3) / (3 * (0.4 - 0.25))
    assert standard_errors(areas, expected) < 4
    assert standard_errors(areas, 1.1 * expected) > 4
    rows = (masks.sum(2) * np.arange(16)).sum(1) / areas
    assert standard_errors(rows, 7.5) < 4
    assert standard_errors(rows, 8.0) > 4
    assert standard_errors((rows - 7.5) ** 2, 64 / 12) < 4
    assert standard_errors((rows - 7.5) ** 2, 1.4 * 64 / 12) > 4
    # The shape lies on top: within its mask images are bright, up to half of what is beneath.
    assert images[masks == 1].min() > 0.2
    assert images[masks == 0].min() < -0.2


def test_loss_and_overlap_by_hand(x64):
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(size=(3, 4, 4)), (rng.random((3, 4, 4)) < 0.4).astype(float)
    masks[2] = 0
    logits[2] = -1.0  # nothing there, nothing found
    m = 1 / (1 + np.exp(-logits))
    entropy = -(masks * np.log(m) + (1 - masks) * np.log(1 - m)).mean()
    dice = [
        (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(m, masks, strict=True)
    ]
    ious = []
    for a, b in zip(m > 0.5, masks == 1, strict=True):
        ious.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
    loss, aux = mask_loss(jnp.asarray(logits), jnp.asarray(masks))
    np.testing.assert_allclose(loss, entropy + 1 - np.mean(dice), rtol=1e-12)
    np.testing.assert_allclose(aux.iou, np.mean(ious), rtol=1e-12)


@pytest.mark.compiles
def test_the_network_is_one_of_xla_convolutions(x64):
    family = shape_segmentation(size=6, channels=(2, 3), batch_size=2)
    task_params = family.sample(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.05, family.init(task_params, jax.random.key(1)))
    batch = family.batch((), task_params, jax.random.key(2))

    def expected_of(params, batch):
        def layer(index, x, stride):
            kernel, bias = params[index]["w"], params[index]["b"].reshape(1, 1, 1, -1)
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return x + bias

        fine = jax.nn.relu(layer(0, batch.inputs, 1))
        coarse = jax.nn.relu(layer(2, jax.nn.relu(layer(1, fine, 2)), 1))
        coarse = jax.image.resize(coarse, (2, 6, 6, 3), "nearest")
        return mask_loss(layer(3, jnp.concatenate([fine, coarse], -1), 1)[..., 0], batch.labels)

    @jax.jit
    def both(params, batch):
        return family.loss(params, task_params, batch, jax.random.key(3)), expected_of(
            params, batch
        )

    (loss, aux), (expected, expected_aux) = both(params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(aux.iou, expected_aux.iou)


@pytest.mark.slow
def test_meta_gradients_agree_with_central_differences(x64):
    family = shape_segmentation(size=6, channels=(2, 2), batch_size=2)
    theta = family.init(family.sample(jax.random.key(0)), jax.random.key(1))
    estimator = maml(family, optax.sgd(0.1), num_steps=1, num_tasks=1).estimator

    def estimate(theta):
        return estimator.estimate(theta, (), (), jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta, step=1e-6)
    grad = jax.jit(lambda theta: estimate(theta).grad)(theta)
    assert relative_error(grad, differences) < 1e-6


@pytest.mark.slow
def test_meta_training_raises_the_overlap_after_a_few_steps():
    family = shape_segmentation(size=16, channels=(6, 8))
    inner, outer = optax.sgd(0.1), optax.adam(3e-3)
    learner = maml(family, inner, num_steps=3, num_tasks=4)
    scores = jax.jit(few_shot_scores(family, adapt(family, inner, num_steps=10), num_tasks=100))

    @jax.jit
    def trained(theta, keys):
        def update(carry, key):
            theta, state = carry
            estimate, _ = learner.estimator.estimate(theta, (), (), key)
            updates, state = outer.update(estimate.grad, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        return jax.lax.scan(update, (theta, outer.init(theta)), keys)[0][0]

    start = learner.init(jax.random.key(0))
    end = trained(start, jax.random.split(jax.random.key(1), 300))
    before, after = (scores(theta, (), jax.random.key(2)).aux.iou for theta in (start, end))
    # The difference on the same tasks, in standard errors above a tenth.
    gain = np.asarray(after - before)
    assert gain.mean() > 0.1
    assert standard_errors(gain, 0.1) > 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 7}, "size=7 must be even"),
        ({"size": 0}, "size=0 is below 1"),
        ({"batch_size": 0}, "batch_size=0 is below 1"),
        ({"num_clutter": -1}, "num_clutter=-1 at least 0"),
        ({"channels": (4,)}, r"channels=\(4,\) must hold two positive numbers"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"shape_segmentation: .*{message}"):
        shape_segmentation(**settings)
