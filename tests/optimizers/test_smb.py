import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import smb
from tests.optimizers.networks import apply, cross_entropy, dense, digits


def by_hand(g, y, rate, eta):
    """The model step of one array, in the terms of the paper."""
    s = -rate * g
    ys, yg, sg = np.sum(y * s), np.sum(y * g), np.sum(s * g)
    ss, yy = np.sum(s * s), np.sum(y * y)
    sigma = 0.5 * (np.sqrt(ss) * (np.sqrt(yy) + np.linalg.norm(g) / eta) - ys)
    theta = (ys + 2 * sigma) ** 2 - ss * yy
    cg = -ss / (2 * sigma)
    cs = cg / theta * (-(ys + 2 * sigma) * yg + yy * sg)
    cy = cg / theta * (-(ys + 2 * sigma) * sg + ss * yg)
    return cs * s + cg * g + cy * y


def one_update(tx, params, gradient, trial_gradient, trial_value, value=1.0):
    """The update when the trial gives these, and the state after it."""

    def value_and_grad_fn(params):
        del params
        return jnp.asarray(trial_value), trial_gradient

    return tx.update(
        gradient,
        tx.init(params),
        params,
        value=jnp.asarray(value),
        value_and_grad_fn=value_and_grad_fn,
    )


@pytest.mark.parametrize("rate", [0.1, 2.0])
def test_a_failed_trial_repeats_a_transcription(x64, rate):
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 2), "b": (2,)}
    g, there = ({name: rng.normal(size=s) for name, s in shapes.items()} for _ in range(2))
    params = jax.tree.map(jnp.zeros_like, g)
    update, state = one_update(
        smb(rate, eta=0.9), params, *(jax.tree.map(jnp.asarray, x) for x in (g, there)), 2.0
    )
    for name in shapes:
        expected = by_hand(g[name], there[name] - g[name], rate, 0.9)
        np.testing.assert_allclose(update[name], expected, rtol=1e-10)
        # What η is for.
        assert np.linalg.norm(update[name]) <= 0.9 * rate * np.linalg.norm(g[name])
    assert state.num_models == 1


def test_an_accepted_trial_is_gradient_descent():
    g = jnp.array([0.3, -0.4])
    # The loss must fall by c · rate · |g|² = 0.0125.
    for value, accepted in [(1 - 0.0126, True), (1 - 0.0124, False)]:
        update, state = one_update(smb(0.5), jnp.zeros(2), g, 2 * g, value)
        assert np.allclose(update, -0.5 * g) == accepted
        assert state.num_models == (0 if accepted else 1)


@pytest.mark.parametrize("curvature", [10.0, 1e6])
def test_the_model_of_a_steep_parabola_takes_half_a_newton_step(curvature):
    """Up to what η bounds: g/(2h + 1/(αη)) for a curvature of h."""
    w = jnp.array([1.0])

    def loss(w):
        return 0.5 * curvature * jnp.sum(w**2)

    value, gradient = jax.value_and_grad(loss)(w)
    tx = smb(1.0, eta=0.5)
    update, _ = tx.update(
        gradient, tx.init(w), w, value=value, value_and_grad_fn=jax.value_and_grad(loss)
    )
    # Where it is steep, a millionth of the two gradients is left: roundings of 6e-8 become 3e-2.
    rtol = 1e-5 if curvature == 10 else 0.05
    np.testing.assert_allclose(update, -gradient / (2 * curvature + 2.0), rtol=rtol)
    if curvature == 10:
        expected = by_hand(np.array([10.0]), np.array([-100.0]), 1.0, 0.5)
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_leaves_without_a_usable_gradient_stay():
    g = {"dead": jnp.zeros(2), "blown": jnp.ones(2), "fine": jnp.ones(1)}
    there = {"dead": jnp.ones(2), "blown": jnp.full(2, jnp.nan), "fine": -jnp.ones(1)}
    update, _ = one_update(smb(), jax.tree.map(jnp.zeros_like, g), g, there, jnp.nan)
    assert np.all(np.asarray(update["dead"]) == 0)
    assert np.all(np.asarray(update["blown"]) == 0)
    assert update["fine"] < 0
    # A gradient that is no number shows.
    g = {"w": jnp.array([jnp.nan, 1.0])}
    update, _ = one_update(smb(), jax.tree.map(jnp.zeros_like, g), g, g, 1.0)
    assert np.isnan(update["w"]).any()


def test_the_schedule_shortens_after_failures_and_lengthens_up_to_twenty(x64):
    g = jnp.ones(2)

    def scales(rate, trial_value, num_steps=6):
        tx = smb(rate, period=2)
        state, found = tx.init(g), []
        for _ in range(num_steps):
            _, state = tx.update(
                g,
                state,
                g,
                value=1.0,
                value_and_grad_fn=lambda p: (jnp.asarray(trial_value), 2 * g),
            )
            found.append(float(state.scale))
        return found

    fails, succeeds = 2.0, -1e3
    np.testing.assert_allclose(scales(1.0, fails), [1, 0.9, 0.9, 0.81, 0.81, 0.729])
    np.testing.assert_allclose(scales(1.0, succeeds)[:4], [1, 1 / 0.9, 1 / 0.9, 1 / 0.81])
    np.testing.assert_allclose(scales(19.0, succeeds)[-1], 20 / 19)


def test_the_second_gradient_is_computed_in_the_branch_that_needs_it():
    def program(params):
        tx = smb()

        def loss(p):
            return jnp.sum(jnp.sin(p))

        value, gradient = jax.value_and_grad(loss)(params)
        return tx.update(
            gradient,
            tx.init(params),
            params,
            value=value,
            value_and_grad_fn=jax.value_and_grad(loss),
        )[0]

    assert "conditional" in jax.jit(program).lower(jnp.ones(3)).compile().as_text()


@pytest.mark.slow
def test_trains_at_rates_at_which_gradient_descent_fails():
    (inputs, labels), _ = digits()
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)

    def loss(params, rows):
        return cross_entropy(apply(params, inputs[rows], jax.nn.relu), labels[rows])

    def final(tx, num_steps):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (64,), 0, len(labels))
            value_and_grad_fn = jax.value_and_grad(lambda p: loss(p, rows))
            value, gradient = value_and_grad_fn(params)
            updates, state = optax.with_extra_args_support(tx).update(
                gradient, state, params, value=value, value_and_grad_fn=value_and_grad_fn
            )
            return (optax.apply_updates(params, updates), state), None

        params = dense((64, 32, 10), jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), num_steps)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return loss(params, jnp.arange(len(labels)))

    found = jax.jit(jax.vmap(lambda rate: final(smb(rate), 600)))(jnp.array([0.1, 0.5, 1.0, 3.0]))
    assert np.all(np.asarray(found) <= 0.2)
    assert jax.jit(lambda: final(optax.sgd(3.0), 1200))() >= 1.0


def test_bad_arguments_are_refused():
    for bad in [{"eta": 1.0}, {"c": 0.0}]:
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            smb(**bad)
    with pytest.raises(ValueError, match="smb: period must be at least 1"):
        smb(period=0)
    tx = smb()
    with pytest.raises(ValueError, match="smb: update needs value_and_grad_fn"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=1.0)
