import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.data import strokes
from metaopt.data._strokes import _render, _segments


@pytest.mark.usefixtures("x64")
def test_ink_falls_with_the_distance_to_the_segment():
    # Row 0, from column -0.2 to 0.3: distances are known by hand.
    image = _render(jnp.array([[0.0, -0.2]]), jnp.array([[0.0, 0.3]]), size=20)
    centre = (np.arange(20) + 0.5) / 20 - 0.5
    row, column = np.meshgrid(centre, centre, indexing="ij")
    beyond = np.maximum(np.maximum(-0.2 - column, column - 0.3), 0)
    expected = np.exp(-(row**2 + beyond**2) / (2 * 0.03**2))
    np.testing.assert_allclose(image, expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_segments_follow_the_bezier_curve():
    # Control points (0, 0), (1, 0), (1, 1): the curve is (2t - t², t²).
    start, end = _segments(jnp.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]]))
    t = np.linspace(0, 1, 9)
    curve = np.stack([2 * t - t**2, t**2], axis=1)
    np.testing.assert_allclose(start, curve[:-1], atol=1e-15)
    np.testing.assert_allclose(end, curve[1:], atol=1e-15)


def draw(jitter):
    pool = jax.jit(
        lambda key, jitter: strokes(
            key, num_classes=6, examples_per_class=5, size=16, jitter=jitter
        )
    )(jax.random.key(0), jitter)
    np.testing.assert_array_equal(pool.labels, np.repeat(np.arange(6), 5))
    return np.asarray(pool.inputs).reshape(6, 5, -1)


def test_examples_of_a_class_are_variations_of_one_character():
    images = draw(1.0)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.max(-1) > 0.9).all()
    # Every example is nearer to the mean of its own class, itself left out, than to any other.
    own = (images.sum(1, keepdims=True) - images) / 4
    to_own = ((images - own) ** 2).sum(-1)
    to_all = ((images[:, :, None] - images.mean(1)[None, None]) ** 2).sum(-1)
    to_all[np.arange(6), :, np.arange(6)] = np.inf
    assert (to_own < to_all.min(-1)).mean() > 0.8
    assert (to_own > 0.1).all()


def test_without_jitter_all_examples_of_a_class_are_equal():
    images = draw(0.0)
    np.testing.assert_allclose(images, np.broadcast_to(images[:, :1], images.shape), atol=1e-6)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="strokes: size=0 is below 1"):
        strokes(jax.random.key(0), num_classes=2, examples_per_class=1, size=0)
