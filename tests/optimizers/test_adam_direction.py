import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.optimizers._adam_direction import adam_direction
from tests.helpers import central_differences, relative_error

SLOPES = np.random.default_rng(0).normal(size=(5, 4))


def end(settings, slopes):
    """Where five steps lead."""
    b1, b2, eps = settings
    opt = adam_direction(b1=b1, b2=b2, eps=eps)

    def step(carry, slope):
        x, state = carry
        updates, state = opt.update(slope * (1 + 0.1 * x), state)
        return (x - 0.1 * updates, state), None

    start = jnp.ones(slopes.shape[1], slopes.dtype)
    return jax.lax.scan(step, (start, opt.init(start)), slopes)[0][0]


def test_is_the_direction_of_optax(x64):
    def updates(opt):
        def step(state, g):
            update, state = opt.update(g, state)
            return state, update

        return jax.lax.scan(step, opt.init(jnp.zeros(4)), jnp.asarray(SLOPES))

    ours, theirs = jax.jit(
        lambda: (
            updates(adam_direction(b1=0.8, b2=0.99, eps=1e-3)),
            updates(optax.scale_by_adam(0.8, 0.99, 1e-3)),
        )
    )()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


def test_derivatives_of_the_settings_are_central_differences(x64):
    # A dead entry, which contributes nothing, among others.
    slopes = jnp.asarray(np.concatenate([SLOPES, np.zeros((5, 1))], axis=1))
    settings = jnp.array([0.9, 0.95, 0.01])

    def total(settings):
        return jnp.sum(jnp.sin(end(settings, slopes)))

    slope = jax.jit(jax.grad(total))(settings)
    assert relative_error(slope, central_differences(total, settings)) < 1e-6


def test_gradients_whose_squares_overflow_lead_to_steps_of_the_right_size():
    signs = np.sign(SLOPES[:1]).astype(np.float32) * np.ones((5, 1), np.float32)
    path = jax.jit(lambda s: end((0.9, 0.999, 1e-8), s))(1e30 * signs)
    np.testing.assert_allclose(path, 1 - 0.5 * signs[0], rtol=1e-4)
