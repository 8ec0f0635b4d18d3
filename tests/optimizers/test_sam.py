import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import sam_gradient
from tests.helpers import central_differences, relative_error
from tests.optimizers import golden


def loss(params):
    return jnp.sum(jnp.sin(params["a"])) * jnp.sum(params["b"] ** 3) + jnp.sum(params["a"] ** 4)


def params():
    return {"a": jnp.array([0.3, -0.7]), "b": jnp.array([0.5, 0.2, -0.4])}


@pytest.mark.parametrize(("name", "adaptive"), [("sam", False), ("sam_adaptive", True)])
def test_repeats_a_published_trajectory(x64, name, adaptive):
    opt = optax.sgd(0.05)

    def one(carry, step):
        p, state = carry
        g = sam_gradient(golden.gradients, rho=0.1, adaptive=adaptive)(p, step)
        updates, state = opt.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    start = golden.start()
    run = jax.jit(lambda p: jax.lax.scan(one, (p, opt.init(p)), jnp.arange(golden.STEPS))[1])
    assert golden.difference(name, run(start)) < 1e-7


def test_with_gradient_descent_it_is_the_sam_of_optax(x64):
    grad_fn, outer = jax.grad(loss), optax.sgd(0.05, momentum=0.9)
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    theirs = optax.contrib.sam(outer, uphill, opaque_mode=True)

    @jax.jit
    def both(start):
        ours, state = start, outer.init(start)
        reference, other = start, theirs.init(start)
        for _ in range(5):
            updates, state = outer.update(sam_gradient(grad_fn, rho=0.1, eps=0.0)(ours), state)
            ours = optax.apply_updates(ours, updates)
            updates, other = theirs.update(
                grad_fn(reference), other, reference, grad_fn=lambda p, i: grad_fn(p)
            )
            reference = optax.apply_updates(reference, updates)
        return ours, reference

    ours, reference = both(params())
    assert relative_error(ours, reference) < 1e-12


def test_mapped_over_shards_every_shard_has_its_own_worst_point(x64):
    shards = np.random.default_rng(0).normal(size=(3, 4, 2))

    def grad_fn(w, x):
        return jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)

    w = np.array([0.4, -0.2])
    ours = jax.vmap(lambda x: sam_gradient(grad_fn, rho=0.3)(jnp.asarray(w), x))(shards)

    def slope(w, x):
        t = np.tanh(x @ w)
        return 2 * x.T @ (t * (1 - t**2)) / len(x)

    expected = np.stack(
        [slope(w + 0.3 * (g := slope(w, x)) / np.linalg.norm(g), x) for x in shards]
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    whole = sam_gradient(grad_fn, rho=0.3)(jnp.asarray(w), shards.reshape(-1, 2))
    assert np.abs(whole - expected.mean(axis=0)).max() > 1e-3


@pytest.mark.parametrize("adaptive", [False, True])
def test_derivatives_pass_through_the_direction_on_request(x64, adaptive):
    def value(p, second_order):
        g = sam_gradient(jax.grad(loss), rho=0.2, adaptive=adaptive, second_order=second_order)(p)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(g))

    expected = central_differences(lambda p: value(p, True), params())
    slopes = jax.jit(lambda p: [jax.grad(value)(p, kind) for kind in (True, False)])
    full, cut = slopes(params())
    assert relative_error(full, expected) < 1e-6
    assert relative_error(cut, expected) > 1e-2


def test_derivatives_always_pass_through_the_radius(x64):
    def value(rho):
        g = sam_gradient(jax.grad(loss), rho=rho)(params())
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(g))

    expected = central_differences(value, jnp.array(0.2))
    assert relative_error(jax.jit(jax.grad(value))(jnp.array(0.2)), expected) < 1e-7


@pytest.mark.parametrize("scale", [0.0, 1e30])
@pytest.mark.parametrize("adaptive", [False, True])
def test_it_and_its_derivatives_are_finite_where_gradients_vanish_or_are_huge(scale, adaptive):
    @jax.jit
    def both(w):
        grad_fn = jax.grad(lambda w: scale * jnp.sum(jnp.array([1.0, 0.0]) * (w + w**2)))
        gradient = sam_gradient(grad_fn, adaptive=adaptive, second_order=True)
        return gradient(w), jax.jacobian(gradient)(w)

    for x in both(jnp.array([0.5, 0.0])):
        assert np.isfinite(x).all()


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="rho must be finite and at least 0, got -0.1"):
        sam_gradient(jax.grad(loss), rho=-0.1)
