import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.cli import _optimizers as optimizers
from metaopt.cli import _presets as presets
from metaopt.cli import _settings as settings

PARAMS = ({"w": np.ones((3, 2), np.float32)}, {"w": np.ones((2, 4), np.float32)})


def with_optimizer(name, **changes):
    return settings.RunSettings(optimizer=settings.OptimizerSettings(name, 0.01, **changes))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_has_updates_like_the_parameters(name):
    optimizer = optimizers.make_optimizer(with_optimizer(name))

    def step(key):
        tx = optimizer.optimizer(optimizer.init(key), num_steps=10)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=jnp.ones(()))[0]

    updates = jax.eval_shape(step, jax.random.key(0))
    assert jax.tree.map(lambda u: (u.shape, u.dtype), updates) == jax.tree.map(
        lambda p: (p.shape, p.dtype), PARAMS
    )


@pytest.mark.parametrize("name", ["celo2", "celo2_mixed"])
def test_a_rule_of_unit_steps_competes_with_its_step_size_as_the_learning_rate(name):
    chosen = with_optimizer(name)
    theta = optimizers.make_optimizer(chosen).init(jax.random.key(0))
    tx = optimizers.make_contender(chosen, theta, "this run", 100).make(0.03)
    params = {"w": np.ones((3, 2), np.float32)}
    grads = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(np.sqrt(np.mean(updates["w"] ** 2)), 0.03, rtol=1e-4)


@pytest.mark.parametrize(("name", "factor"), [("mlp", 0.5), ("celo", 1.0)])
def test_only_rules_without_a_schedule_of_their_own_follow_the_cosine(name, factor):
    chosen = with_optimizer(name, decay="none")
    optimizer = optimizers.make_optimizer(chosen)
    theta = optimizer.init(jax.random.key(0))

    @jax.jit
    def second_updates():
        contender = optimizers.make_contender(chosen, theta, "this run", 2).make(0.01)
        results = []
        for tx in (contender, optimizer.optimizer(theta, num_steps=2)):
            state = tx.init(PARAMS)
            for _ in range(2):
                updates, state = tx.update(PARAMS, state, PARAMS, value=jnp.ones(()))
            results.append(updates[0]["w"])
        return results

    used, plain = second_updates()
    np.testing.assert_allclose(used, factor * plain, rtol=1e-5)


def test_steps_of_hidden_weights_are_divided_by_their_fan_in():
    params = tuple({"w": np.ones(shape, np.float32)} for shape in ((3, 8), (8, 8), (8, 2)))

    def update(mup):
        optimizer = optimizers.make_optimizer(with_optimizer("mlp", mup=mup, hidden_size=3))
        tx = optimizer.optimizer(optimizer.init(jax.random.key(0)), num_steps=10)
        return tx.update(params, tx.init(params), params)[0]

    plain, scaled = jax.jit(lambda: (update(False), update(True)))()
    for before, after, factor in zip(plain, scaled, (1, 1 / 8, 1), strict=True):
        np.testing.assert_allclose(after["w"], factor * before["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("celo2", {"bank_size": 4}, "celo2 has no optimizer.bank_size; it has hidden_size"),
        ("velo", {"phase": 1}, "velo has no optimizer.phase; it has hidden_size, bank_size"),
        ("sgd", {"hidden_size": 4}, "sgd has no optimizer.hidden_size; it has no sizes"),
    ],
)
def test_sizes_that_an_optimizer_does_not_have_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        optimizers.make_optimizer(with_optimizer(name, **changes))


def outer_updates(grads, **changes):
    """What the optimizer of theta answers to the gradients, one after the other."""
    outer = settings.OuterSettings(
        steps=8, learning_rate=0.1, warmup=0, final_fraction=1.0, **changes
    )
    tx = optimizers.make_outer(settings.RunSettings(outer=outer))
    params = jnp.array([3.0, 4.0])
    state, updates = tx.init(params), []
    for grad in grads:
        update, state = tx.update(jnp.asarray(grad), state, params)
        updates.append(np.asarray(update))
    return np.array(updates)


def test_the_outer_optimizer_is_adam_by_default():
    grads = [[3.0, -4.0], [1.0, 0.5]]
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1, b2=0.99))
    state, expected = tx.init(jnp.zeros(2)), []
    for grad in grads:
        update, state = tx.update(jnp.asarray(grad), state)
        expected.append(update)
    np.testing.assert_allclose(outer_updates(grads), expected, rtol=1e-6)


def test_the_first_steps_of_its_variants_are_known():
    # Adam's first step is the learning rate, whatever the gradient.
    grads = [[3.0, -4.0]]
    np.testing.assert_allclose(outer_updates(grads, clip=None), [[-0.1, 0.1]], rtol=1e-5)
    decayed = outer_updates(grads, optimizer="adamw", weight_decay=0.5)
    np.testing.assert_allclose(decayed, [[-0.1 - 0.15, 0.1 - 0.2]], rtol=1e-5)
    clipped = outer_updates(grads, update_clip=0.01)
    np.testing.assert_allclose(clipped, [[-0.01 / 2**0.5, 0.01 / 2**0.5]], rtol=1e-5)


def test_other_rules_and_clipping_by_earlier_norms_are_chosen_by_name():
    # Grams takes the sign from the gradient, the size of Adam's first step.
    signs = outer_updates([[3.0, -4.0]], optimizer="grams", clip=None)
    np.testing.assert_allclose(signs, [[-0.1, 0.1]], rtol=1e-5)
    # The first step of AdaGrad-Norm is the learning rate along the gradient, b0 = 0.01 apart.
    along = outer_updates([[3.0, -4.0]], optimizer="adagrad_norm", clip=None)
    np.testing.assert_allclose(along, [[-0.06, 0.08]], rtol=1e-4)
    # The median of norms 1 and 5 is 3.
    grads = [[1.0, 0.0], [0.0, 5.0]]
    clipped = outer_updates(grads, optimizer="adagrad_norm", auto_clip=50.0, clip=None)
    np.testing.assert_allclose(clipped[1], [0.0, -0.1 * 3 / 10**0.5], rtol=1e-4)


def test_accumulated_gradients_give_one_update_of_their_mean():
    updates = outer_updates([[3.0, -4.0], [-1.0, 4.0]], accumulate=2, clip=None)
    np.testing.assert_array_equal(updates[0], [0.0, 0.0])
    np.testing.assert_allclose(updates[1], [-0.1, 0.0], atol=1e-6)


def test_values_are_clipped_one_by_one():
    # After a step of equal sizes, the second one tells the ratio of the gradients.
    equal = outer_updates([[9.0, 3.0], [9.0, 3.0]], clip_value=3.0, clip=None)
    np.testing.assert_array_equal(equal[:, 0], equal[:, 1])
    first, second = [9.0, 1.0], [1.0, 1.0]
    clipped = outer_updates([first, second], clip_value=1.0, clip=None)
    np.testing.assert_array_equal(clipped[1, 0], clipped[1, 1])
    free = outer_updates([first, second], clip=None)
    assert free[1, 0] != free[1, 1]


@pytest.mark.parametrize(("phase", "frozen"), [(1, "scheduler"), (2, "network")])
def test_a_phase_of_celo_leaves_the_rest_of_theta_bit_for_bit(phase, frozen):
    chosen = presets.preset(f"celo_{phase}")
    assert chosen.optimizer.phase == phase
    small = dataclasses.replace(chosen.optimizer, hidden_size=3)
    chosen = dataclasses.replace(chosen, optimizer=small)
    theta = optimizers.make_optimizer(chosen).init(jax.random.key(0))
    tx = optimizers.make_outer(chosen)
    state = tx.init(theta)

    @jax.jit
    def step(theta, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, theta), state, theta)
        return optax.apply_updates(theta, updates), state

    new, state = step(theta, state)
    new, state = step(new, state)  # The first step of the warm-up has length zero.
    for name in ("scheduler", "network"):
        before, after = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(t[name])]) for t in (theta, new)
        )
        assert np.array_equal(before, after) == (name == frozen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "outer.accumulate must be between 1 and outer.steps=8, got 0"),
        ({"update_clip": -1.0}, "outer.update_clip must be positive, got -1.0"),
        ({"clip_value": 0.0}, "outer.clip_value must be positive"),
        ({"auto_clip": 101.0}, "outer.auto_clip must be from 0 to 100, got 101.0"),
        ({"weight_decay": 0.1}, "outer.weight_decay=0.1 needs outer.optimizer=adamw"),
    ],
)
def test_bad_settings_of_the_outer_optimizer_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        outer_updates([], **changes)
