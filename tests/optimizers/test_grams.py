import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import grams, scale_by_grams
from tests.optimizers import golden


def test_repeats_the_published_implementation(x64):
    assert golden.difference("grams", golden.trajectory(grams(0.01))) < 1e-12
    decayed = grams(0.01, weight_decay=0.1)
    assert golden.difference("grams_decay", golden.trajectory(decayed)) < 1e-12


def test_never_decreases_less_to_first_order_than_cautious_adam_nor_that_less_than_adam(x64):
    ours, adam = scale_by_grams(), optax.scale_by_adam(eps=1e-6)
    curvatures = jnp.logspace(-1, 1, 20)

    def step(carry, noise):
        x, state, reference = carry
        g = curvatures * x + noise
        d, state = ours.update(g, state)
        u, reference = adam.update(g, reference)
        slopes = jnp.stack([jnp.sum(g * d), jnp.sum(jnp.maximum(g * u, 0)), jnp.sum(g * u)])
        return (x - 0.01 * d, state, reference), slopes

    @jax.jit
    def run(noise):
        x = jnp.ones(20)
        return jax.lax.scan(step, (x, ours.init(x), adam.init(x)), noise)[1]

    grams_slope, cautious, plain = run(jax.random.normal(jax.random.key(0), (500, 20))).T
    assert (grams_slope >= cautious).all()
    assert (cautious >= plain).all()
    assert (grams_slope > 1.1 * plain).mean() > 0.5  # They differ.


def test_is_adam_where_the_gradient_keeps_its_sign(x64):
    slopes = jnp.asarray(np.random.default_rng(0).uniform(0.1, 2.0, size=(5, 3)))

    def updates(opt):
        def step(state, g):
            update, state = opt.update(g, state, g)
            return state, update

        return jax.lax.scan(step, opt.init(slopes[0]), slopes)[1]

    ours, theirs = jax.jit(lambda: (updates(grams(0.1)), updates(optax.adam(0.1, eps=1e-6))))()
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_coordinate_without_a_gradient_rests_although_its_momentum_does_not():
    opt = scale_by_grams()
    _, state = opt.update(jnp.ones(2), opt.init(jnp.zeros(2)))
    update, state = opt.update(jnp.array([0.0, 1.0]), state)
    assert update[0] == 0
    assert update[1] > 0.9
    assert state.mu[0] > 0


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_decays_outside_their_range_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got 1.0"):
        grams(0.1, **{name: 1.0})
