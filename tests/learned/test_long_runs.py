import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.core import LearnedOptimizer
from metaopt.learned import long_runs, velo
from tests import helpers

WEIGHT_DECAY = 0.3


def momentum():
    """Momentum times the loss, with a rate that depends on the planned steps; theta is a factor."""

    def optimizer(theta, *, num_steps=None):
        inner = optax.trace(0.9)

        def update(updates, state, params=None, *, value, **extra):
            updates, state = inner.update(updates, state, params)
            return jax.tree.map(lambda u: -theta * value / num_steps * u, updates), state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return LearnedOptimizer(lambda key: jnp.ones(()), optimizer)


PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
GRADS = {"w": jnp.arange(16.0).reshape(8, 2), "b": jnp.linspace(-1, 1, 8)}
LOSSES = jnp.linspace(3.0, 1.0, 8) ** 2


def run(learned, num_steps):
    """Parameters after each step."""
    opt = learned.optimizer(jnp.asarray(0.05), num_steps=num_steps)

    def step(carry, fed):
        (params, state), (grads, loss) = carry, fed
        updates, state = opt.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (PARAMS, opt.init(PARAMS)), (GRADS, LOSSES))[1]


def by_hand(every, planned, weight_decay):
    """The same in NumPy, the parameters as one vector."""
    p = np.array([1.0, -2.0, 0.5])
    grads = np.concatenate([GRADS["w"], np.asarray(GRADS["b"])[:, None]], axis=1)
    ends, m, g_sum, loss_sum = [], np.zeros(3), np.zeros(3), 0.0
    for t, (g, loss) in enumerate(zip(grads, np.asarray(LOSSES), strict=True)):
        g_sum = g_sum + g + weight_decay * p
        loss_sum += loss + weight_decay * np.sum(p**2)
        if (t + 1) % every == 0:
            m = 0.9 * m + g_sum / every
            p = p - 0.05 * (loss_sum / every) / planned * m
            g_sum, loss_sum = np.zeros(3), 0.0
        ends.append(p)
    return np.stack(ends)


@pytest.mark.parametrize(
    ("num_steps", "max_steps", "every", "planned"), [(8, 8, 1, 8), (8, 4, 2, 4), (8, 3, 3, 2)]
)
@pytest.mark.parametrize("traced", [False, True])
def test_averages_gradients_and_losses(num_steps, max_steps, every, planned, traced):
    learned = long_runs(momentum(), max_steps=max_steps, weight_decay=WEIGHT_DECAY)
    run_jit = jax.jit(run, static_argnums=(0,) if traced else (0, 1))
    ends = run_jit(learned, jnp.array(num_steps) if traced else num_steps)
    actual = np.concatenate([ends["w"], np.asarray(ends["b"])[:, None]], axis=1)
    np.testing.assert_allclose(actual, by_hand(every, planned, WEIGHT_DECAY), rtol=2e-5)


def test_short_runs_are_left_alone():
    plain, wrapped = (jax.jit(lambda x=x: run(x, 8))() for x in (momentum(), long_runs(momentum())))
    np.testing.assert_array_equal(helpers.ravel(wrapped), helpers.ravel(plain))
    state = long_runs(momentum()).optimizer(1.0, num_steps=8).init(PARAMS)
    expected = momentum().optimizer(1.0, num_steps=8).init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(expected)


def test_says_what_it_lacks():
    with pytest.raises(ValueError, match="long_runs: max_steps=0"):
        long_runs(velo(), max_steps=0)
    with pytest.raises(ValueError, match="long_runs: num_steps=None"):
        long_runs(momentum()).optimizer(1.0)
    opt = long_runs(momentum()).optimizer(1.0, num_steps=8)
    with pytest.raises(ValueError, match="long_runs: update got no value"):
        opt.update(PARAMS, opt.init(PARAMS), PARAMS)
