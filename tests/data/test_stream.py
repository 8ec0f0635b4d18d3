import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.data import Pool, stream


class Source:
    """Example i is (i, i mod 3); remembers how many examples each call read."""

    def __init__(self):
        self.reads = []

    def __call__(self, indices):
        self.reads.append(len(indices))
        return Pool(indices[:, None].astype(np.float32), (indices % 3).astype(np.int32))


def make(source, **settings):
    made = stream(source, num_examples=7, num_classes=3, **settings)
    getattr(source, "reads", []).clear()  # one example is read for its shape
    return made


def sequence(length, seed=0):
    """The first examples of the stream, from its definition."""
    epochs = [np.random.default_rng((seed, e)).permutation(7) for e in range(length // 7 + 1)]
    return np.concatenate(epochs)[:length]


@pytest.mark.parametrize(("pool_size", "refresh"), [(5, 2), (5, 1), (4, 4), (16, 3), (3, 5)])
def test_pools_hold_the_latest_examples_in_steady_slots(pool_size, refresh):
    made = make(Source(), pool_size=pool_size, refresh=refresh)
    for step in range(8):
        pool = made.pool(step)
        first = step * refresh
        positions = np.arange(first, first + pool_size)
        expected = np.empty(pool_size)
        expected[positions % pool_size] = sequence(first + pool_size)[positions]
        np.testing.assert_array_equal(pool.inputs[:, 0], expected)
        np.testing.assert_array_equal(pool.labels, expected % 3)
    assert pool.inputs.dtype == jnp.float32
    assert pool.labels.dtype == jnp.int32


def test_steps_in_order_read_only_the_new_examples():
    source = Source()
    made = make(source, pool_size=5, refresh=2)
    for step in range(4):
        made.pool(step)
    made.pool(3)
    assert source.reads == [5, 2, 2, 2]


@pytest.mark.parametrize("steps", [[11], [12, 11], [9, 11], [3, 11], [11, 11]])
def test_a_pool_depends_on_its_step_alone(steps):
    in_order, resumed = (make(Source(), pool_size=5, refresh=2, seed=4) for _ in range(2))
    for step in range(12):
        expected = in_order.pool(step)
    for step in steps:
        actual = resumed.pool(step)
    np.testing.assert_array_equal(actual.inputs, expected.inputs)
    np.testing.assert_array_equal(actual.labels, expected.labels)


def test_an_earlier_pool_is_not_changed_by_a_later_step():
    made = make(Source(), pool_size=5, refresh=2)
    before = made.pool(0)
    copy = np.array(before.inputs)
    made.pool(1)
    np.testing.assert_array_equal(before.inputs, copy)


def test_the_description_matches_the_pool():
    made = make(Source(), pool_size=5, refresh=2)
    assert made.num_classes == 3
    assert made.input_shape == made.pool(0).inputs.shape[1:] == (1,)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="stream: refresh=0 is below 1"):
        make(Source(), refresh=0)
    with pytest.raises(ValueError, match="stream: step=-1 is negative"):
        make(Source(), pool_size=2).pool(-1)
    with pytest.raises(ValueError, match="leading axes of the pool differ"):
        make(lambda i: Pool(np.zeros((len(i), 1)), np.zeros(len(i) + 1)), pool_size=2).pool(0)
