import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import smb, smbi
from tests.optimizers.networks import apply, cross_entropy, dense, digits
from tests.optimizers.test_smb import by_hand


def by_hand_on_two_batches(rejected, g, y, rate, eta):
    """The model step of one array, in the terms of the paper."""
    s = -rate * g
    ys, yg, sg = np.sum(y * s), np.sum(y * rejected), np.sum(s * rejected)
    ss, yy = np.sum(s * s), np.sum(y * y)
    sigma = 0.5 * (np.sqrt(ss) * (np.sqrt(yy) + np.linalg.norm(g) / eta) - ys)
    theta = (ys + 2 * sigma) ** 2 - ss * yy
    cg = -ss / (2 * sigma)
    cs = cg / theta * (-(ys + 2 * sigma) * yg + yy * sg)
    cy = cg / theta * (-(ys + 2 * sigma) * sg + ss * yg)
    return cs * s + cg * rejected + cy * y


def two_updates(tx, first, second, trial_gradient, trial_values=(2.0, 2.0), value=1.0):
    """Updates on two batches whose gradients these are, with the trials' values."""

    @jax.jit
    def run(gradients, trial_gradient):
        params = jax.tree.map(jnp.zeros_like, trial_gradient)

        def step(state, batch):
            gradient, trial_value = batch
            update, state = tx.update(
                gradient,
                state,
                params,
                value=jnp.asarray(value),
                value_and_grad_fn=lambda p: (trial_value, trial_gradient),
            )
            return state, update

        return jax.lax.scan(step, tx.init(params), (gradients, jnp.asarray(trial_values)))

    state, updates = run(jax.tree.map(lambda *x: jnp.stack(x), first, second), trial_gradient)
    return [jax.tree.map(lambda u, i=i: u[i], updates) for i in range(2)], state


def random_trees(count, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 2), "b": (2,)}
    return [{name: rng.normal(size=s) for name, s in shapes.items()} for _ in range(count)]


@pytest.mark.parametrize("rate", [0.1, pytest.param(2.0, marks=pytest.mark.compiles)])
def test_a_failed_trial_stays_and_the_next_batch_repeats_a_transcription(x64, rate):
    first, g, there = random_trees(3)
    (stayed, update), state = two_updates(
        smbi(rate, eta=0.9), *(jax.tree.map(jnp.asarray, x) for x in (first, g, there))
    )
    for name in first:
        assert not np.asarray(stayed[name]).any()
        y = there[name] - g[name]
        expected = by_hand_on_two_batches(first[name], g[name], y, rate, 0.9)
        np.testing.assert_allclose(update[name], expected, rtol=1e-10)
    assert not state.failed


@pytest.mark.compiles
def test_on_the_same_batch_again_it_is_the_step_of_smb(x64):
    g, there = random_trees(2)
    (_, update), _ = two_updates(smbi(0.5), *(jax.tree.map(jnp.asarray, x) for x in (g, g, there)))
    params = jax.tree.map(jnp.zeros_like, g)
    tx = smb(0.5)
    expected, _ = tx.update(
        jax.tree.map(jnp.asarray, g),
        tx.init(params),
        params,
        value=1.0,
        value_and_grad_fn=lambda p: (jnp.asarray(2.0), jax.tree.map(jnp.asarray, there)),
    )
    for name in g:
        np.testing.assert_allclose(update[name], expected[name], rtol=1e-10)
        np.testing.assert_allclose(
            update[name], by_hand(g[name], there[name] - g[name], 0.5, 0.99), rtol=1e-10
        )


def test_accepted_trials_are_gradient_descent_and_failures_are_followed_by_a_model():
    g = jnp.array([0.3, -0.4])
    # The loss must fall by c · rate · |g|² = 0.0125.
    (first, second), state = two_updates(smbi(0.5), g, 2 * g, g, (1 - 0.0126, 2.0))
    np.testing.assert_allclose(first, -0.5 * g)
    assert not second.any()
    assert state.failed
    np.testing.assert_allclose(state.rejected, 2 * g)


@pytest.mark.compiles
def test_opposite_and_large_changes_of_the_gradient_keep_float32_exact():
    """y is along g or nearly so, where the formulas of the paper cancel."""
    factors = np.array([-1.0 - 1e-3, -1e4, -1e8, 1e8, 1e12])
    gradients, g = np.array([[1.0, 0.5], [0.6, 0.8]]), np.array([0.6, 0.8])

    def updates():
        def one(factor):
            return two_updates(smbi(0.5), *jnp.asarray(gradients, float), (1 + factor) * g)[0][1]

        return np.asarray(jax.vmap(one)(jnp.asarray(factors, float)))

    single = updates()
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, updates(), rtol=1e-3, atol=1e-6)


@pytest.mark.compiles
def test_leaves_without_a_usable_gradient_stay():
    first = {"dead": jnp.ones(2), "blown": jnp.ones(2), "fine": jnp.ones(1)}
    g = {"dead": jnp.zeros(2), "blown": jnp.ones(2), "fine": jnp.ones(1)}
    there = {"dead": jnp.ones(2), "blown": jnp.full(2, jnp.nan), "fine": -jnp.ones(1)}
    (_, update), _ = two_updates(smbi(), first, g, there)
    assert not np.asarray(update["dead"]).any()
    assert not np.asarray(update["blown"]).any()
    assert update["fine"] < 0
    broken = jnp.array([jnp.nan, 1.0])
    (update, _), _ = two_updates(smbi(), broken, broken, broken)
    assert np.isnan(update).any()


@pytest.mark.compiles
def test_trains_at_rates_over_a_decade():
    (inputs, labels), _ = digits()
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)

    def loss(params, rows):
        return cross_entropy(apply(params, inputs[rows], jax.nn.relu), labels[rows])

    def final(tx):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (64,), 0, len(labels))
            value_and_grad_fn = jax.value_and_grad(lambda p: loss(p, rows))
            value, gradient = value_and_grad_fn(params)
            updates, state = tx.update(
                gradient, state, params, value=value, value_and_grad_fn=value_and_grad_fn
            )
            return (optax.apply_updates(params, updates), state), None

        params = dense((64, 32, 10), jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 600)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return loss(params, jnp.arange(len(labels)))

    found = jax.jit(jax.vmap(lambda rate: final(smbi(rate))))(jnp.array([0.1, 0.5, 1.0]))
    assert (found <= 0.2).all(), found


def test_bad_arguments_are_refused():
    for bad in [{"eta": 1.0}, {"c": 0.0}]:
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            smbi(**bad)
    tx = smbi()
    with pytest.raises(ValueError, match="smbi: update needs value and value_and_grad_fn"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=1.0)
