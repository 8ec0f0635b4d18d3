import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned import velo
from metaopt.learned._published import scheduled_from_published, scheduled_to_published
from tests import helpers
from tests.learned import reference, scheduled, scheduled_by_hand, unrolled


def small(**settings):
    """Steps large enough to be seen, and networks small enough not to explode."""
    return velo(
        **{"hidden_size": 5, "bank_size": 3, "mix_mult": 10.0, "step_mult": 0.1, **settings}
    )


@pytest.mark.parametrize(
    ("name", "loss_horizon"),
    [
        ("hyperv2_small", 10),
        ("hyperv2_small_loud", 10),
        ("hyperv2_small_fixedloss_loud", None),
    ],
)
@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(name, loss_horizon, rolling, tolerance):
    archive = reference.load(name)
    mult = 0.1 if name.endswith("loud") else 1e-3
    learned = velo(
        hidden_size=16, bank_size=4, loss_horizon=loss_horizon, step_mult=mult, exp_mult=mult
    )
    opt = learned.optimizer(scheduled.theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    scheduled.check_final_state(archive, state)


@pytest.mark.compiles
@pytest.mark.parametrize("param_scale", [True, False])
def test_four_steps_by_hand(x64, param_scale):
    mults = {"step_mult": 0.1, "exp_mult": 0.2, "mix_mult": 10.0}
    learned = small(param_scale=param_scale, loss_horizon=None if param_scale else 30.0, **mults)
    theta = scheduled.perturbed(learned)
    params, grads, losses = scheduled.draw_run()
    follow = jax.jit(
        lambda params, grads: scheduled.follow(learned, theta, params, grads, losses, num_steps=6)
    )
    actual, _ = follow(params, grads)
    expected = scheduled_by_hand.run(
        jax.tree.map(np.asarray, theta),
        *scheduled.as_lists(params, grads),
        np.asarray(losses),
        num_steps=6,
        horizon=6 if param_scale else 30.0,
        celo=False,
        mix=lambda u, w: 10 * np.mean(u.reshape((-1,) + (1,) * (w.ndim - 1)) * w, axis=0),
        factor=lambda head: head,
        mults=(0.1, 0.2),
        param_scale=param_scale,
    )
    scheduled.check_ends(params, actual, expected)


def test_has_the_published_number_of_weights_less_one_unused_layer():
    theta = jax.eval_shape(velo().init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(theta))
    assert count == 162_305 - (30 * 128 + 128)


@pytest.mark.compiles
def test_published_trees_come_back_as_they_were():
    theta = scheduled.perturbed(velo(hidden_size=5, bank_size=3))
    tree = scheduled_to_published(theta)
    assert tree["ff_mod_stack"]["~"]["w0__13"].shape == (3, 3, 4)
    back = scheduled_from_published(tree)
    assert jax.tree.structure(back) == jax.tree.structure(theta)
    np.testing.assert_array_equal(helpers.ravel(back), helpers.ravel(theta))


@pytest.mark.compiles
def test_what_tensors_are_called_does_not_matter():
    learned = small()
    theta = scheduled.perturbed(learned)
    params, grads, losses = scheduled.draw_run()
    renamed = {"bias": "z", "matrix": "y", "scalar": "x"}

    @jax.jit
    def both(params, grads):
        def follow(params, grads):
            return scheduled.follow(learned, theta, params, grads, losses, num_steps=6)[0]

        other = ({renamed[n]: x for n, x in tree.items()} for tree in (params, grads))
        return follow(params, grads), follow(*other)

    one, other = both(params, grads)
    for name, value in one.items():
        np.testing.assert_allclose(other[renamed[name]], value, rtol=1e-4, atol=1e-5)


@pytest.mark.compiles
def test_tensors_hear_of_each_other():
    learned = small()
    theta = scheduled.perturbed(learned)
    params, grads, losses = scheduled.draw_run()
    louder = {**grads, "matrix": 100 * grads["matrix"]}
    follow = jax.jit(
        jax.vmap(
            lambda grads: scheduled.follow(learned, theta, params, grads, losses, num_steps=6)[0]
        )
    )
    ends = follow(jax.tree.map(lambda *x: jnp.stack(x), grads, louder))
    assert helpers.relative_error(ends["bias"][1], ends["bias"][0]) > 1e-4


@pytest.mark.compiles
def test_planned_steps_may_be_traced_and_differ_under_vmap():
    learned = small()
    theta = scheduled.perturbed(learned)
    params, grads, losses = scheduled.draw_run()

    def end(num_steps):
        return scheduled.follow(learned, theta, params, grads, losses, num_steps=num_steps)[0]

    together = jax.jit(jax.vmap(end))(jnp.array([5, 40]))
    alone = jax.jit(end, static_argnums=0)(40)
    assert helpers.relative_error(jax.tree.map(lambda x: x[1], together), alone) < 1e-5
    assert helpers.relative_error(together["bias"][0], together["bias"][1]) > 1e-4


@pytest.mark.slow
def test_meta_gradients_are_finite_on_awkward_inputs():
    learned = velo(hidden_size=5, bank_size=3)
    params = unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "bias": (3,), "scalar": ()})
    params["zeros"] = jnp.zeros(2)
    cases = unrolled.awkward_gradients(params, 20, jax.random.key(3))
    grad = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda theta, g, p: unrolled.final_loss(learned, theta, g, p)),
            in_axes=(None, 0, None),
        )
    )
    losses, grads = grad(scheduled.perturbed(learned), cases, params)
    assert np.isfinite(losses).all()
    assert np.isfinite(helpers.ravel(grads)).all()


@pytest.mark.slow
def test_meta_gradients_match_central_differences(x64):
    learned = small(hidden_size=2, bank_size=2, network_size=2, exp_mult=0.1)
    theta = scheduled.perturbed(learned)
    params, grads, losses = scheduled.draw_run()

    def meta_loss(theta):
        # Losses that depend on theta, so that the loss features do.
        hints = 1 + 0.1 * jnp.tanh(theta["scheduler"]["step"]["b"])
        end, _ = scheduled.follow(learned, theta, params, grads, losses * hints, num_steps=6)
        return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(end))

    actual = helpers.ravel(jax.jit(jax.grad(meta_loss))(theta))
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6


def test_nan_gradients_stay_visible():
    learned = small()
    params, grads, _ = scheduled.draw_run(1)
    opt = learned.optimizer(scheduled.perturbed(learned), num_steps=6)
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    updates, _ = jax.jit(opt.update)(grads, opt.init(params), params, value=jnp.ones(()))
    assert all(jnp.isnan(y).all() for y in jax.tree.leaves(updates))


def test_a_tree_without_tensors_is_let_through():
    learned = small()
    opt = learned.optimizer(scheduled.perturbed(learned), num_steps=6)
    updates, _ = opt.update({}, opt.init({}), {}, value=jnp.ones(()))
    assert updates == {}


def test_says_what_it_lacks():
    for size in ("hidden_size", "bank_size", "network_size"):
        with pytest.raises(ValueError, match=f"velo: {size}=0"):
            velo(**{size: 0})
    learned = small()
    theta = learned.init(jax.random.key(0))
    with pytest.raises(ValueError, match="velo: num_steps=None"):
        learned.optimizer(theta)
    opt, params = learned.optimizer(theta, num_steps=3), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="update got no params"):
        opt.update(params, opt.init(params), value=1.0)
    with pytest.raises(ValueError, match="update got no value"):
        opt.update(params, opt.init(params), params)
