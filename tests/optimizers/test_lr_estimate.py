import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import entrywise_lr_estimate, lr_estimate, one_cycle_momentum
from tests.optimizers.networks import apply, cross_entropy, dense, digits

# Momenta of torch.optim.lr_scheduler.OneCycleLR (2.13) with total_steps=21, pct_start=1/3: it turns
# at the same step as a cycle of 20 transitions with pct_start=0.3.
PUBLISHED = {
    "cosine": [
        0.95, 0.943301270189, 0.925, 0.9, 0.875, 0.856698729811, 0.85, 0.851253604391,
        0.854951556605, 0.860908425877, 0.868825509907, 0.878305813044, 0.888873953302, 0.9,
        0.911126046698, 0.921694186956, 0.931174490093, 0.939091574123, 0.945048443395,
        0.948746395609, 0.95,
    ],
    "linear": [
        0.95, 0.933333333333, 0.916666666667, 0.9, 0.883333333333, 0.866666666667, 0.85,
        0.857142857143, 0.864285714286, 0.871428571429, 0.878571428571, 0.885714285714,
        0.892857142857, 0.9, 0.907142857143, 0.914285714286, 0.921428571429, 0.928571428571,
        0.935714285714, 0.942857142857, 0.95,
    ],
}  # fmt: skip


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_momentum_of_a_cycle_is_the_published_one(x64, shape):
    schedule = one_cycle_momentum(20, shape=shape)
    found = jax.vmap(schedule)(jnp.arange(21))
    np.testing.assert_allclose(found, PUBLISHED[shape], atol=1e-11)
    np.testing.assert_allclose(schedule(100), 0.95)


@pytest.mark.parametrize(
    ("shape", "rates"),
    [
        ("cosine", optax.cosine_onecycle_schedule),
        ("linear", lambda n, peak: optax.linear_onecycle_schedule(n, peak, pct_final=1.0)),
    ],
)
def test_momentum_is_least_where_the_learning_rate_is_largest(shape, rates):
    steps = jnp.arange(51)
    momentum = jax.vmap(one_cycle_momentum(50, shape=shape))(steps)
    rate = jax.vmap(rates(50, 1.0))(steps)
    assert int(jnp.argmin(momentum)) == int(jnp.argmax(rate)) == 15
    # On the way up both are the same curve, one of them upside down.
    rising = slice(0, 16)
    np.testing.assert_allclose(
        (0.95 - momentum[rising]) / 0.1, (rate[rising] - 0.04) / 0.96, atol=1e-5
    )


def test_the_estimate_of_a_diagonal_quadratic_is_exact(x64):
    curvatures, rate = jnp.array([0.1, 1.0, 5.0]), 0.05
    tx = optax.chain(optax.sgd(rate), lr_estimate(rate, decay=0.6))
    w = jnp.array([1.0, -2.0, 0.5])
    state, updates, sums = tx.init(w), [], np.zeros(2)
    update = jax.jit(tx.update)
    for _ in range(4):
        new, state = update(curvatures * w, state)
        np.testing.assert_allclose(new, -rate * curvatures * w, rtol=1e-14)
        updates.append(np.asarray(new))
        w = w + new
    found = entrywise_lr_estimate(updates[0], updates[1], learning_rate=rate)
    np.testing.assert_allclose(found, 1 / curvatures, rtol=1e-10)
    for before, after in zip(updates[:-1], updates[1:], strict=True):
        new = np.array([np.abs(before).sum(), np.abs(before - after).sum()])
        sums = 0.6 * sums + 0.4 * new
    np.testing.assert_allclose(
        optax.tree.get(state, "estimate"), rate * sums[0] / sums[1], rtol=1e-10
    )


def test_the_estimate_is_zero_until_curvature_was_seen():
    tx = lr_estimate(0.1)
    state = tx.init(jnp.ones(2))
    for update in (jnp.ones(2), jnp.ones(2)):
        _, state = tx.update(update, state)
        assert state.estimate == 0
    _, state = tx.update(2 * jnp.ones(2), state)
    assert state.estimate > 0


@pytest.mark.slow
def test_a_cycle_to_a_high_rate_trains_faster_than_any_constant_rate():
    train, test = (tuple(map(jnp.asarray, part)) for part in digits())
    # Single seeds differ by a factor of three.
    num_steps, num_seeds = 120, 6

    def run(make, key):
        tx = make()
        key_init, key_train = jax.random.split(key)

        def step(carry, index):
            params, state = carry
            key = jax.random.fold_in(key_train, index)
            rows = jax.random.randint(key, (64,), 0, len(train[1]))
            gradient = jax.grad(
                lambda p: cross_entropy(apply(p, train[0][rows], jax.nn.relu), train[1][rows])
            )(params)
            updates, state = tx.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        params = dense((64, 64, 10), key_init)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(num_steps))
        logits = apply(params, test[0], jax.nn.relu)
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == test[1])
        return cross_entropy(apply(params, train[0], jax.nn.relu), train[1]), accuracy

    def cycle():
        return optax.inject_hyperparams(optax.sgd)(
            learning_rate=optax.cosine_onecycle_schedule(num_steps, 0.6),
            momentum=one_cycle_momentum(num_steps),
        )

    def constant(rate):
        return lambda key: run(lambda: optax.sgd(rate, momentum=0.9), key)

    keys = jax.random.split(jax.random.key(0), num_seeds)
    loss, accuracy = jax.jit(jax.vmap(lambda key: run(cycle, key)))(keys)
    rates = jnp.array([0.03, 0.1, 0.3, 0.6, 1.0])
    others, _ = jax.jit(jax.vmap(lambda rate: jax.vmap(constant(rate))(jax.random.clone(keys))))(
        rates
    )
    assert jnp.mean(accuracy) >= 0.965
    assert jnp.mean(loss) <= 0.85 * jnp.nanmin(jnp.mean(others, axis=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lr_estimate(0.0), "lr_estimate: learning_rate must be positive, got 0.0"),
        (lambda: lr_estimate(0.1, decay=1.0), "lr_estimate: decay must be in"),
        (lambda: one_cycle_momentum(0), "transition_steps must be at least 1, got 0"),
        (lambda: one_cycle_momentum(10, pct_start=1.0), "pct_start must be between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
