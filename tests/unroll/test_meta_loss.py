import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import unroll
from tests.estimators import toys
from tests.unroll.test_unroll import breaks_at

THETA = jnp.array([0.3, -0.2])


def losses(num_steps):
    """The losses of the nonlinear toy, step by step in NumPy."""
    a, b, state = np.asarray(toys.A), np.asarray(toys.B), np.full(2, 0.1)
    result = []
    for _ in range(num_steps):
        state = np.tanh(a @ state + b @ np.asarray(THETA))
        result.append(np.sum((state - 1) ** 2))
    return np.array(result)


@pytest.mark.parametrize(
    ("objective", "reduce"), [("mean", np.mean), ("min", np.min), ("last", lambda x: x[-1])]
)
@pytest.mark.parametrize("drawn", [False, True])
def test_objectives_reduce_the_losses_of_the_trajectory(objective, reduce, drawn):
    horizon = unroll.log_uniform(2, 11) if drawn else 7
    loss = unroll.meta_loss(toys.nonlinear(), horizon=horizon, objective=objective)
    value = jax.jit(loss)(THETA, (), jax.random.key(0), num_steps=jnp.array(7))
    np.testing.assert_allclose(value, reduce(losses(7)), rtol=1e-5)


def test_a_drawn_length_stays_within_the_horizon():
    loss = unroll.meta_loss(toys.counter(), horizon=unroll.log_uniform(2, 5), objective="last")
    draw = jax.vmap(lambda key: loss(jnp.array(1.0), (), key))
    assert set(np.asarray(draw(jax.random.split(jax.random.key(1), 200)))) == {2, 3, 4, 5}


def test_info_tells_of_divergence():
    for time, frozen in ((3, True), (30, False)):
        loss = unroll.meta_loss_with_info(breaks_at(time), horizon=5)
        value, info = loss(jnp.array(1.0), (), jax.random.key(2))
        assert info.frozen == frozen
        assert np.isfinite(value)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="objective='best' is unknown"):
        unroll.meta_loss(toys.linear(), horizon=3, objective="best")
    with pytest.raises(ValueError, match="meta_loss: horizon must be at least 1"):
        unroll.meta_loss(toys.linear(), horizon=0)
