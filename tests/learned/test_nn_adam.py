import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned import nn_adam
from tests import helpers
from tests.learned import reference, unrolled

SHAPES = {"matrix": (3, 2), "scalar": (), "vector": (2,)}
CONTROLS = ("lr", "beta1", "beta2", "epsilon")


def theta_from(archive):
    inner = {"lstm": "rnn_params/rnn/linear", "head": "rnn_to_controls_params/rnn_to_controls"}
    theta = {name: reference.tree(archive, f"theta/{path}") for name, path in inner.items()}
    start = reference.tree(archive, "theta/lstm_init_state")
    return theta | {
        "controls": jnp.stack([jnp.asarray(archive[f"theta/per_layer_{x}"]) for x in CONTROLS]),
        "state": {name: x[0] for name, x in start.items()},
    }


@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(rolling, tolerance):
    archive = reference.load("nn_adam_lr0.05")
    opt = nn_adam().optimizer(theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    expected = reference.tree(archive, "final_state/lstm_hidden_state")
    np.testing.assert_allclose(state.carry.hidden, expected["hidden"], atol=1e-5)
    np.testing.assert_allclose(state.carry.cell, expected["cell"], atol=1e-5)
    for index, (name, first) in enumerate(sorted(state.moments.first.items())):
        for path, actual in (("m", first), ("rms", state.moments.second[name])):
            expected = archive[f"final_state/rolling_features/{path}/{name}"]
            np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=1e-4)
        controls = [archive[f"final_state/per_layer_{x}/{name}"] for x in CONTROLS]
        # The original passes through 1 - b: 6e-8 in b, at b = 0.999, is 6e-6 in a step here.
        np.testing.assert_allclose(state.controls[index], controls, atol=3e-5)


def run(learned, theta, params, grads):
    """Parameters after each of a sequence of gradients, and the last state."""
    opt = learned.optimizer(theta)

    def step(carry, grads):
        params, state = carry
        updates, state = opt.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    start = (params, opt.init(params))
    (_, state), params = jax.jit(lambda grads: jax.lax.scan(step, start, grads))(grads)
    return params, state


def problem(num_steps=4):
    params = unrolled.params_like(jax.random.key(2), SHAPES)
    grads = {n: (num_steps, *s) for n, s in SHAPES.items()}
    return params, unrolled.params_like(jax.random.key(3), grads)


def perturbed(learned, scale=0.5):
    leaves, treedef = jax.tree.flatten(learned.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        x + scale * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    theta = treedef.unflatten(noisy)
    return theta | {"controls": learned.init(jax.random.key(0))["controls"]}


@pytest.mark.usefixtures("x64")
def test_is_adam_without_bias_correction_when_fresh():
    learned = nn_adam(learning_rate=0.1, b1=0.8, b2=0.95, eps=0.01)
    theta = learned.init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == 6856
    params, grads = problem()
    actual, _ = run(learned, theta, params, grads)
    for name, p in params.items():
        m = r = 0.0
        for g, p_next in zip(np.asarray(grads[name]), np.asarray(actual[name]), strict=True):
            m, r = 0.8 * m + 0.2 * g, 0.95 * r + 0.05 * g**2
            p = p - 0.1 * 1.01 * m / (0.01 + np.sqrt(r + 1e-10))
            np.testing.assert_allclose(p_next, p, rtol=1e-12)


def log_size(x):
    return 0.5 * np.clip(np.log(1e-8 + np.abs(x)), -5, 5)


def by_hand(theta, p, grads, *, output_scale):
    """One tensor, with every feature written out in the order of its name."""
    theta = jax.tree.map(np.asarray, theta)
    lr, b1, b2, eps = theta["controls"]
    h, c = theta["state"]["hidden"], theta["state"]["cell"]
    m = r = 0 * p
    for g in grads:
        d1, d2 = 1 - np.exp(10 * b1), 1 - np.exp(10 * b2)
        m, r = d1 * m + (1 - d1) * g, d2 * r + (1 - d2) * g**2
        e = np.exp(10 * eps)
        step = np.exp(10 * lr) * (1 + e) / (e + np.sqrt(r + 1e-10)) * m
        features = {
            "beta1": 0.2 * b1, "beta2": 0.2 * b2, "epsilon": 0.2 * eps, "lr": 0.2 * lr,
            "is_bias": 1 if p.ndim == 1 else -1, "is_scalar": 1 if p.ndim == 0 else -1,
            "mean_gabs_mag": log_size(np.abs(g).mean()),
            **{f"mean_{n}_mag": log_size(x.mean()) for n, x in (("g", g), ("m", m), ("p", p))},
            **{f"mean_{n}_sign": np.sign(x.mean()) for n, x in (("g", g), ("m", m), ("p", p))},
            "mean_rms": log_size(r.mean()), "mean_sign": np.sign(r.mean()),
            **{f"var_{n}": log_size(x.var()) for n, x in (("g", g), ("m", m), ("p", p))},
            "var_rms": log_size(r.var()),
        }  # fmt: skip
        x = np.array([features[name] for name in sorted(features)] + list(h))
        i, candidate, f, o = np.split(x @ theta["lstm"]["w"] + theta["lstm"]["b"], 4)
        c = c / (1 + np.exp(-f - 1)) + np.tanh(candidate) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        moved = output_scale * (h @ theta["head"]["w"] + theta["head"]["b"])
        lr, b1, b2, eps = np.array([lr, b1, b2, eps]) + moved
        b1, b2 = np.clip([b1, b2], -1, 0)
        p = p - step
    return p, np.array([lr, b1, b2, eps])


@pytest.mark.usefixtures("x64")
def test_the_network_moves_the_hyperparameters_of_each_tensor():
    learned = nn_adam(hidden_size=3, learning_rate=0.05, output_scale=0.03)
    theta = perturbed(learned)
    params, grads = problem()
    actual, state = run(learned, theta, params, grads)
    for index, name in enumerate(sorted(params)):
        p, controls = by_hand(
            theta, np.asarray(params[name]), np.asarray(grads[name]), output_scale=0.03
        )
        np.testing.assert_allclose(actual[name][-1], p, rtol=1e-9)
        np.testing.assert_allclose(state.controls[index], controls, rtol=1e-9)
    assert np.abs(state.controls - theta["controls"][None]).min() > 1e-3


@pytest.mark.compiles
def test_hyperparameters_stay_in_their_ranges():
    learned = nn_adam(hidden_size=2, output_scale=1.0)
    theta = learned.init(jax.random.key(0))
    for sign, expected in ((1, (1e3, 0, 0, 1e4)), (-1, (1e-8, 1 - np.exp(-10), None, 1e-11))):
        theta["head"]["b"] = sign * jnp.full(4, 10.0)
        _, state = run(learned, theta, *problem(2))
        lr, slow_1, _, eps = np.exp(10 * np.asarray(state.controls[0], np.float64))
        np.testing.assert_allclose([lr, 1 - slow_1, eps], [*expected[:2], expected[3]], rtol=1e-4)


def test_keeps_dtypes_and_accumulates_in_float32():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    learned = nn_adam(hidden_size=2)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    updates, state = jax.jit(opt.update)(params, opt.init(params), params)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32, jnp.bfloat16]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


@pytest.mark.compiles
def test_meta_gradients_are_finite_on_awkward_inputs():
    learned = nn_adam(hidden_size=3)
    params = unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "scalar": ()})
    cases = unrolled.awkward_gradients(params, 20, jax.random.key(3))
    grad = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda theta, g, p: unrolled.final_loss(learned, theta, g, p)),
            in_axes=(None, 0, None),
        )
    )
    losses, grads = grad(perturbed(learned), cases, params)
    assert np.isfinite(losses).all()
    assert np.isfinite(helpers.ravel(grads)).all()


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_meta_gradients_match_central_differences():
    learned = nn_adam(hidden_size=2, learning_rate=0.1, output_scale=0.1)
    theta = perturbed(learned)
    params, grads = problem(3)

    def meta_loss(theta):
        return unrolled.final_loss(learned, theta, grads, params)

    actual = jax.jit(jax.grad(meta_loss))(theta)
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="nn_adam: hidden_size=0"):
        nn_adam(hidden_size=0)
    with pytest.raises(ValueError, match="nn_adam: learning_rate=0"):
        nn_adam(learning_rate=0)
    with pytest.raises(ValueError, match="nn_adam: b2=1.0"):
        nn_adam(b2=1.0)
    learned = nn_adam(hidden_size=2)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="nn_adam: update got no params"):
        opt.update({"w": jnp.ones(2)}, opt.init({"w": jnp.ones(2)}))
