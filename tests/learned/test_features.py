import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import _features as features


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 6), (0, 1)), ((7, 2), (1, 0)), ((4, 4), (0, 1)),
     ((3, 3, 2, 4), (1, 3)), ((1, 6), (0, 1))],
)  # fmt: skip
def test_longest_axes_by_a_stable_sort(shape, axes):
    assert features.factored_axes(shape) == axes


def test_factored_preconditioner_is_exact_for_a_rank_one_second_moment(x64):
    rows, cols = np.array([1.0, 3.0]), np.array([0.5, 2.0, 4.0])
    grad = jnp.asarray(np.sqrt(np.outer(rows, cols)))
    moment = features.factored_zeros(grad, 1)
    for _ in range(3):
        moment = features.factored_update(moment, grad, (0.5,))
    actual = features.factored_rsqrt(moment, grad.shape)[0]
    np.testing.assert_allclose(actual, 1 / np.sqrt((1 - 0.5**3) * grad**2), rtol=1e-8)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_normalise_divides_by_the_root_mean_square(x64, num_axes):
    planes = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    axes = tuple(range(4 - num_axes, 4))
    expected = planes / np.sqrt(0.1 + np.mean(np.square(planes), axis=axes, keepdims=True))
    actual = features.normalise(planes, eps=0.1, num_axes=num_axes)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_ema_keeps_one_average_per_decay():
    average = features.ema(jnp.ones((2, 3)), jnp.array([1.0, 3.0, 5.0]), (0.5, 0.75))
    np.testing.assert_allclose(average, [[1, 2, 3], [1, 1.5, 2]])


def test_clip_gradient_keeps_nan():
    actual = features.clip_gradient(jnp.array([jnp.nan, jnp.inf, -1e30, 2.0]))
    np.testing.assert_array_equal(actual, [jnp.nan, 1000, -1000, 2])


def test_map_leaves_accepts_an_empty_tree():
    empty = optax.MaskedNode()
    assert features.map_leaves(lambda *x: x, empty, empty, empty) == (empty, empty)


def test_a_tree_without_tensors_has_a_state_without_arrays():
    # What a partition masks, it replaces by nodes without leaves.
    params = {"a": {}, "b": ()}
    state = features.init_leaves(lambda param: features.Factored(param, param), params)
    assert state == features.Factored(params, params)
    assert features.map_leaves(None, params, params, state) == (params, state)
