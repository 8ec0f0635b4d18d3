import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import auto_clip, safe_clip_by_global_norm
from tests.optimizers.digit_problems import TRAIN, digits, mlp_loss, mlp_params


def norm_of(tree):
    return np.sqrt(sum(np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("percentile", [0.0, 10.0, 37.5, 100.0])
@pytest.mark.parametrize("history", [1, 7, 100])
def test_thresholds_are_the_percentiles_of_numpy(x64, percentile, history):
    rng = np.random.default_rng(0)
    gradients = {"a": rng.normal(size=(30, 3)), "b": np.exp(rng.normal(size=30))}
    opt = auto_clip(percentile=percentile, history=history)

    def step(state, grads):
        updates, state = opt.update(grads, state)
        return state, updates

    state = opt.init({"a": jnp.zeros(3), "b": jnp.zeros(())})
    _, updates = jax.jit(lambda s: jax.lax.scan(step, s, gradients))(state)
    norms = np.hypot(np.linalg.norm(gradients["a"], axis=1), gradients["b"])
    for index, norm in enumerate(norms):
        seen = norms[max(0, index + 1 - history) : index + 1]
        scale = min(1, np.percentile(seen, percentile) / norm)
        np.testing.assert_allclose(updates["a"][index], scale * gradients["a"][index], rtol=1e-12)


def test_what_is_not_finite_is_passed_on_and_not_counted():
    opt = auto_clip(percentile=50.0, history=4)
    state, update_of = opt.init(jnp.zeros(2)), jax.jit(opt.update)
    for bad in (jnp.array([jnp.nan, 1.0]), jnp.array([jnp.inf, 1.0])):
        update, state = update_of(bad, state)
        np.testing.assert_array_equal(update, bad)
    assert state.count == 0
    assert np.isinf(state.norms).all()
    update, state = update_of(jnp.array([3e30, 4e30]), state)  # Its square overflows.
    np.testing.assert_allclose(update, [3e30, 4e30], rtol=1e-6)
    update, state = update_of(jnp.array([0.0, 6e30]), state)
    np.testing.assert_allclose(update, [0.0, 5.5e30], rtol=1e-6)


def test_zero_gradients_have_finite_derivatives():
    def slope(opt):
        return jax.grad(lambda x: jnp.sum(opt.update(x, opt.init(x))[0]))(jnp.zeros(3))

    opts = auto_clip(), safe_clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    *ours, theirs = jax.jit(lambda: [slope(opt) for opt in opts])()
    np.testing.assert_array_equal(ours, np.ones((2, 3)))
    assert np.isnan(theirs).all()


def test_a_fixed_norm_clips_as_optax_does(x64):
    rng = np.random.default_rng(1)
    opts = safe_clip_by_global_norm(1.5), optax.clip_by_global_norm(1.5)
    both = jax.jit(lambda grads: [opt.update(grads, opt.init(grads))[0] for opt in opts])
    for size in (0.1, 1.0, 10.0):
        grads = {"a": jnp.asarray(size * rng.normal(size=(2, 3))), "b": jnp.asarray(size)}
        ours, theirs = both(grads)
        for name in grads:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12)
    assert norm_of(ours) == pytest.approx(1.5, rel=1e-12)


def test_derivatives_pass_through_the_percentile_and_the_norm(x64):
    opt = auto_clip(history=8)
    first = jnp.array([3.0, 4.0])
    _, state = jax.jit(opt.update)(first, opt.init(first))

    def clipped(percentile, g):
        return jnp.sum(auto_clip(percentile=percentile, history=8).update(g, state)[0])

    # Norms 5 and 10: the threshold is 5 + 5 p/100, of direction (0.6, 0.8).
    slope = jax.jit(jax.grad(clipped))(jnp.array(10.0), 2 * first)
    assert slope == pytest.approx(0.05 * 1.4, rel=1e-12)


def test_spiked_gradients_are_survived_at_any_percentile_and_not_without_clipping():
    inputs, labels = (jnp.asarray(x[:TRAIN]) for x in digits())
    inputs = inputs.astype(jnp.float32)
    rng = np.random.default_rng(0)
    batches = jnp.asarray(rng.integers(0, TRAIN, size=(800, 32)))
    spikes = jnp.asarray(np.where(rng.random(800) < 0.02, 300.0, 1.0), jnp.float32)
    params = mlp_params((64, 64, 10))

    @jax.jit
    @jax.vmap
    def final(percentile):
        opt = optax.chain(auto_clip(percentile=percentile), optax.sgd(0.2))

        def step(carry, fed):
            params, state = carry
            rows, spike = fed
            grads = jax.grad(mlp_loss)(params, inputs[rows], labels[rows])
            updates, state = opt.update(jax.tree.map(lambda g: spike * g, grads), state)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = jax.lax.scan(step, (params, opt.init(params)), (batches, spikes))
        return mlp_loss(end, inputs, labels)

    *clipped, unclipped = final(jnp.array([5.0, 10.0, 50.0, 90.0, 100.0]))
    assert max(clipped) <= 0.2
    assert not unclipped < 2


def adding_problem(key, size, length=25):
    """Two numbers of a sequence are marked; their sum is wanted."""
    key_values, key_first, key_second = jax.random.split(key, 3)
    values = jax.random.uniform(key_values, (size, length))
    first = jax.random.randint(key_first, (size,), 0, length // 2)
    second = jax.random.randint(key_second, (size,), length // 2, length)
    marks = jax.nn.one_hot(first, length) + jax.nn.one_hot(second, length)
    return jnp.stack([values, marks], axis=-1), jnp.sum(values * marks, axis=1)


def recurrent_params(seed):
    """Of 32 hidden units whose recurrent matrix has a spectral radius of 1.5, in NumPy."""
    rng = np.random.default_rng(seed)
    recurrent = rng.normal(size=(32, 32))
    recurrent *= 1.5 / np.abs(np.linalg.eigvals(recurrent)).max()
    params = {
        "in": rng.normal(size=(2, 32)) / np.sqrt(2),
        "recurrent": recurrent,
        "bias": np.zeros(32),
        "out": rng.normal(size=32) / np.sqrt(32),
        "shift": np.zeros(()),
    }
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


def recurrent_loss(params, inputs, targets):
    def step(h, x):
        return jnp.tanh(x @ params["in"] + h @ params["recurrent"] + params["bias"][None]), None

    start = jnp.zeros((inputs.shape[0], 32))
    h, _ = jax.lax.scan(step, start, inputs.swapaxes(0, 1))
    return jnp.mean((h @ params["out"] + params["shift"] - targets) ** 2)


@pytest.mark.slow
def test_recurrent_networks_diverge_unless_their_gradients_are_clipped():
    params = jax.tree.map(lambda *x: jnp.stack(x), *map(recurrent_params, range(4)))

    def losses(params, seed, max_norm):
        opt = optax.chain(safe_clip_by_global_norm(max_norm), optax.sgd(0.1))

        def step(carry, index):
            params, state = carry
            batch = adding_problem(jax.random.fold_in(jax.random.key(seed), index), 32)
            value, grads = jax.value_and_grad(recurrent_loss)(params, *batch)
            updates, state = opt.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        start = params, opt.init(params)
        return jax.lax.scan(step, start, jnp.arange(600))[1][-100:].mean()

    over_norms = jax.vmap(losses, (None, None, 0))
    all_runs = jax.jit(jax.vmap(over_norms, (0, 0, None)))
    losses_of = all_runs(params, jnp.arange(4), jnp.array([1.0, jnp.inf]))
    clipped, unclipped = np.asarray(losses_of).T
    # 1/6 is the variance of the targets; whether 600 steps get below it is a matter of the draw.
    assert (clipped <= 0.25).all()
    assert (~(unclipped < 1e6)).sum() >= 2


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="percentile must be in"):
        auto_clip(percentile=101.0)
    with pytest.raises(ValueError, match="history must be at least 1, got 0"):
        auto_clip(history=0)
    with pytest.raises(ValueError, match="max_norm must not be negative"):
        safe_clip_by_global_norm(-1.0)
