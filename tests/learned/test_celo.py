import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import data, tasks
from metaopt.core import training
from metaopt.learned import celo, celo_scheduled, celo_trainable, train_only
from metaopt.learned._published import scheduled_from_published
from metaopt.unroll import meta_loss
from tests import helpers
from tests.learned import reference, scheduled, scheduled_by_hand, unrolled

PUBLISHED = reference.FOLDER / "celo_published.theta.state"


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(phase, rolling, tolerance):
    archive = reference.load(f"celo_phase{phase}_loud")
    learned = celo(phase=phase, hidden_size=16, step_mult=0.1, exp_mult=0.1)
    opt = learned.optimizer(scheduled.theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    scheduled.check_final_state(archive, state)


@pytest.mark.compiles
@pytest.mark.parametrize("phase", [1, 2])
def test_four_steps_by_hand(x64, phase):
    learned = celo(phase=phase, hidden_size=5, bank_size=3, step_mult=0.5, exp_mult=0.2)
    theta = scheduled.perturbed(learned)
    params, grads, losses = scheduled.draw_run()
    follow = jax.jit(
        lambda params, grads: scheduled.follow(learned, theta, params, grads, losses, num_steps=20)
    )
    actual, _ = follow(params, grads)

    def mix(u, w):
        shares = np.exp(u) / np.exp(u).sum()
        return np.mean(shares.reshape((-1,) + (1,) * (w.ndim - 1)) * w, axis=0)

    expected = scheduled_by_hand.run(
        jax.tree.map(np.asarray, theta),
        *scheduled.as_lists(params, grads),
        np.asarray(losses),
        num_steps=20,
        horizon=20,
        celo=True,
        mix=mix,
        factor=(lambda head: 1.0) if phase == 1 else (lambda head: 0.1 * np.exp(head)),
        mults=(0.5, 0.2),
        param_scale=True,
    )
    scheduled.check_ends(params, actual, expected)


def theta_published():
    if not PUBLISHED.exists():
        pytest.skip("no published weights of Celo")
    serialization = pytest.importorskip("flax.serialization")
    return scheduled_from_published(serialization.msgpack_restore(PUBLISHED.read_bytes()))


@pytest.mark.slow
def test_published_weights_train_a_network_on_digits():
    theta = theta_published()
    learned = celo()
    like = jax.eval_shape(learned.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, theta) == jax.tree.map(jnp.shape, like)
    family = tasks.mlp((8, 8, 1), 10, hidden=(16,), batch_size=32)
    system = training(family, learned)
    pool = data.digits().train

    @jax.jit
    def losses(pool, key):
        key_init, key_run = jax.random.split(key)
        state = system.init(theta, pool, key_init, num_steps=100)

        def step(state, index):
            state, info = system.step(theta, state, pool, jax.random.fold_in(key_run, index))
            return state, info.loss

        return jax.lax.scan(step, state, jnp.arange(100))[1]

    curve = losses(pool, jax.random.key(1))
    assert np.isfinite(curve).all()
    assert curve[-10:].mean() < 0.5 * curve[0]


def outer_run(outer_opt, phase, theta):
    """Three outer steps by backpropagation through short trainings."""
    learned = celo(phase=phase, hidden_size=3, step_mult=0.1)
    function = meta_loss(training(tasks.quadratic(dim=3), learned), horizon=4)

    def step(carry, index):
        theta, state = carry
        grads = jax.grad(function)(theta, (), jax.random.fold_in(jax.random.key(1), index))
        updates, state = outer_opt.update(grads, state, theta)
        return (optax.apply_updates(theta, updates), state), None

    start = (theta, outer_opt.init(theta))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(3))[0][0])(start)


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("phase", "trained", "frozen"), [(1, "network", "scheduler"), (2, "scheduler", "network")]
)
def test_a_phase_leaves_the_other_part_bit_for_bit(phase, trained, frozen):
    theta = scheduled.perturbed(celo(hidden_size=3))
    decaying = optax.adamw(1e-2, weight_decay=0.1)
    after = outer_run(train_only(decaying, celo_trainable(phase)), phase, theta)
    for before, leaf in zip(
        jax.tree.leaves(theta[frozen]), jax.tree.leaves(after[frozen]), strict=True
    ):
        np.testing.assert_array_equal(leaf, before)
    moved = np.abs(helpers.ravel(after[trained]) - helpers.ravel(theta[trained]))
    assert (moved > 0).mean() > 0.5
    if phase == 1:
        # Masked gradients would not do: the scheduler's are zero already, and it decays.
        unmasked = outer_run(decaying, phase, theta)
        assert not np.array_equal(helpers.ravel(unmasked[frozen]), helpers.ravel(theta[frozen]))


def test_train_only_hides_frozen_leaves_from_the_outer_optimizer():
    theta = {"a": jnp.ones(2), "b": jnp.ones(3)}
    opt = train_only(optax.clip_by_global_norm(1.0), lambda theta: {"a": True, "b": False})
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.full(3, jnp.nan)}
    updates, _ = opt.update(grads, opt.init(theta), theta)
    np.testing.assert_allclose(updates["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], np.zeros(3))


@pytest.mark.compiles
def test_the_scheduler_does_not_act_in_phase_one():
    params, grads, losses = scheduled.draw_run(2)
    learned = celo(phase=1, hidden_size=3)
    theta = scheduled.perturbed(learned)

    def final(theta):
        end, _ = scheduled.follow(learned, theta, params, grads, losses, num_steps=5)
        return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(end))

    slopes = jax.jit(jax.grad(final))(theta)
    assert not helpers.ravel(slopes["scheduler"]).any()
    assert np.abs(helpers.ravel(slopes["network"])).max() > 0


@pytest.mark.slow
def test_meta_gradients_are_finite_on_awkward_inputs():
    learned = celo(hidden_size=3)
    params = unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "bias": (3,)})
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


def test_celo_adam_scales_the_steps_of_adam():
    params, grads, losses = scheduled.draw_run()
    adam = optax.adam(0.2)
    learned = celo_scheduled(adam, hidden_size=3)
    silent = jax.tree.map(jnp.zeros_like, learned.init(jax.random.key(0)))

    def compare(theta):
        opt = learned.optimizer(theta, num_steps=8)

        def step(carry, fed):
            (state, own), (grads, loss) = carry, fed
            expected, own = adam.update(grads, own, params)
            updates, state = opt.update(grads, state, params, value=loss)
            return (state, own), jax.tree.map(lambda u, e: jnp.mean(u / e), updates, expected)

        return jax.lax.scan(step, (opt.init(params), adam.init(params)), (grads, losses))[1]

    compare = jax.jit(compare)
    for ratio in compare(silent).values():
        np.testing.assert_allclose(ratio, 0.1, rtol=1e-5)
    ratios = compare(scheduled.perturbed(learned))
    np.testing.assert_allclose(ratios["matrix"], ratios["bias"], rtol=1e-5)
    assert (ratios["bias"] > 0).all()
    assert np.ptp(ratios["bias"]) > 1e-3


def test_says_what_it_lacks():
    with pytest.raises(ValueError, match="celo: phase=3"):
        celo(phase=3)
    with pytest.raises(ValueError, match="celo_trainable: phase=0"):
        celo_trainable(0)
    with pytest.raises(ValueError, match="celo: hidden_size=0"):
        celo(hidden_size=0)
    with pytest.raises(ValueError, match="celo_scheduled: hidden_size=0"):
        celo_scheduled(optax.sgd(0.1), hidden_size=0)
    for learned, name in ((celo(), "celo"), (celo_scheduled(optax.sgd(0.1)), "celo_scheduled")):
        theta = learned.init(jax.random.key(0))
        with pytest.raises(ValueError, match=f"{name}: num_steps=None"):
            learned.optimizer(theta)
        opt, params = learned.optimizer(theta, num_steps=3), {"w": jnp.ones(2)}
        with pytest.raises(ValueError, match=f"{name}: update got no value"):
            opt.update(params, opt.init(params), params)
