import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from metaopt import optimizers
from tests.optimizers import golden


def updates_of(opt, gradients, params):
    """Every update for a tree of gradients, steps first."""

    def one(carry, grads):
        params, state = carry
        updates, state = opt.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), updates

    return jax.jit(lambda p, g: jax.lax.scan(one, (p, opt.init(p)), g)[1])(params, gradients)


def noise(num_steps):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(num_steps, *shape)) for name, shape in golden.SHAPES.items()}


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw"])
def test_rules_that_divide_by_a_sum_of_gradients_begin_with_the_first_one(x64, name):
    gradients, params = noise(9), golden.start()
    gradients = jax.tree.map(lambda g: np.concatenate([0 * g[:3], g[3:]]), gradients)
    expected = updates_of(
        getattr(optax.contrib, name)(1.0), jax.tree.map(lambda g: g[3:], gradients), params
    )
    ours = updates_of(getattr(optimizers, name)(1.0), gradients, params)
    for leaf, update in ours.items():
        np.testing.assert_array_equal(update[:3], 0)
        np.testing.assert_allclose(update[3:], expected[leaf], rtol=1e-12)
        assert np.abs(update[3:]).min() > 0


@pytest.mark.parametrize("name", ["yogi", "simplified_ademamix"])
def test_only_gradients_whose_squares_overflow_are_clipped(name):
    gradients, params = jax.tree.map(jnp.float32, noise(4)), golden.start()
    original = getattr(optax, name, None) or getattr(optax.contrib, name)
    ours, theirs = (
        updates_of(factory(0.1), gradients, params)
        for factory in (getattr(optimizers, name), original)
    )
    for leaf in params:
        np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=1e-6)
    huge = jax.tree.map(lambda g: 1e30 * jnp.sign(g), gradients)
    limit = float(jnp.finfo(jnp.float32).max) ** 0.5 / 1024
    clipped = jax.tree.map(lambda g: limit * jnp.sign(g), gradients)
    ours = updates_of(getattr(optimizers, name)(0.1), huge, params)
    theirs = updates_of(original(0.1), clipped, params)
    for leaf in params:
        np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=1e-6)
        assert np.isfinite(ours[leaf]).all()


def test_a_scalar_is_to_sm3_what_a_vector_of_one_entry_is():
    gradients = jnp.array([0.5, -1.0, 2.0])
    ours = updates_of(optimizers.sm3(0.1), gradients, jnp.ones(()))
    theirs = updates_of(optax.sm3(0.1), gradients[:, None], jnp.ones(1))
    np.testing.assert_allclose(ours, theirs[:, 0], rtol=1e-6)
    with pytest.raises(IndexError):
        updates_of(optax.sm3(0.1), gradients, jnp.ones(()))
