import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned import rnn_mlp
from tests import helpers
from tests.learned import reference, unrolled

SHAPES = {"matrix": (3, 2), "scalar": (), "vector": (2,)}
DECAYS = np.array([0.5, 0.9, 0.99, 0.999, 0.9999])


def theta_from(archive):
    modules = {
        "lstm": "rnn_params/rnn/linear",
        "to_all": "rnn_to_in_params/rnn_to_in",
        "to_mlp": "rnn_to_ff_params/rnn_to_ff",
    }
    theta = {name: reference.tree(archive, f"theta/{path}") for name, path in modules.items()}
    mlp = "theta/ffmod_params/mlp/~/linear"
    theta["mlp"] = {f"linear_{i}": reference.tree(archive, f"{mlp}_{i}") for i in range(3)}
    start = reference.tree(archive, "theta/lstm_init_state")
    return theta | {
        "state": {
            **{name: x[0] for name, x in start.items()},
            "from_mlp": jnp.asarray(archive["theta/initial_from_mlp"]),
            "to_all": jnp.asarray(archive["theta/initial_from_lstm"]),
        }
    }


@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(rolling, tolerance):
    archive = reference.load("rnn_mlp_lopt_loud")
    learned = rnn_mlp(step_mult=0.1, exp_mult=0.1)
    opt = learned.optimizer(theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    final = reference.tree(archive, "final_state")
    assert state.count == final["iteration"]
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)  # noqa: E731
    close(state.carry.hidden, final["lstm_hidden_state/hidden"])
    close(state.carry.cell, final["lstm_hidden_state/cell"])
    close(state.to_all, final["from_lstm"])
    close(state.size, final["dynamic_clip/value"])
    close(state.train.mean, final["train_loss_accum/mean"])
    close(state.train.variance, final["train_loss_accum/var"])
    for index, name in enumerate(sorted(state.moments.momenta)):
        close(state.from_mlp[index], final[f"from_mlp/{name}"])
        for path, field in (("mom_rolling/m", 0), ("rms_rolling/rms", 1)):
            expected = np.moveaxis(final[f"{path}/{name}"], -1, 0)
            close(state.moments[field][name].reshape(expected.shape), expected)


def perturbed(learned, scale=0.3):
    leaves, treedef = jax.tree.flatten(learned.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        x + scale * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return treedef.unflatten(noisy)


def run(learned, theta, params, grads, losses, validation):
    """Parameters after each of a sequence of gradients, and the last state."""
    opt = learned.optimizer(theta)

    def step(carry, fed):
        params, state = carry
        grads, loss, other = fed
        updates, state = opt.update(grads, state, params, value=loss, validation_value=other)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    start = (params, opt.init(params))
    (_, state), params = jax.jit(lambda fed: jax.lax.scan(step, start, fed))(
        (grads, losses, validation)
    )
    return params, state


def problem(num_steps=4):
    params = unrolled.params_like(jax.random.key(2), SHAPES)
    grads = unrolled.params_like(jax.random.key(3), {n: (num_steps, *s) for n, s in SHAPES.items()})
    # The first gradient is far above the size of 1 that the clip expects.
    grads["matrix"] = grads["matrix"].at[0].multiply(30)
    return params, grads, jnp.array([3.0, 2.0, 2.5, 1.0]), jnp.array([3.5, 2.2, 2.6, 2.0])


def log_size(x):
    return np.clip(np.log(1e-8 + np.abs(x)), -5, 5)


def features_by_hand(g, m, r, p):
    """What the recurrent network sees of a tensor besides the losses and messages."""
    return {
        "g_norm": log_size(np.sqrt((g**2).sum())),
        "is_scalar": 1 if p.ndim == 0 else -1,
        "mean_ms_mag": log_size(m.mean()), "mean_ms_sign": np.sign(m.mean()),
        "mean_rms": log_size(r.mean()), "mean_sign": np.sign(r.mean()),
        "mean_v_mag": log_size(p.mean()), "mean_v_sign": np.sign(p.mean()),
        "norm_weight": log_size(np.sqrt((p**2).sum())),
        **{f"shape_{j}": np.log((*p.shape, 1, 1, 1, 1)[j]) - 1 for j in range(4)},
        "var_ms": log_size(m.var()), "var_rms": log_size(r.var()), "var_v": log_size(p.var()),
    }  # fmt: skip


def entries_by_hand(theta, t, tensors, g, m, r, p, message):
    """The three parts of the per-entry network's output, entries first."""
    g, p, m, r = g.reshape(-1, 1), p.reshape(-1, 1), m.reshape(-1, 5), r.reshape(-1, 5)
    root = 1 / np.sqrt(r + 1e-6)
    x = np.concatenate([g, p, np.log(np.abs(p) + 1e-8), m, r, m * root, root], axis=1)
    x = x / np.sqrt(1e-5 + (x**2).mean(axis=0, keepdims=True))
    scales = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
    sizes = [np.log(tensors) - 1, np.log(np.sqrt((p**2).sum()) + 1e-8), np.log(len(p))]
    constants = np.concatenate([np.sin(t / (np.pi * scales)), sizes, message])
    x = np.concatenate([x, np.tile(constants, (len(p), 1))], axis=1)
    for i in range(3):
        x = x @ theta[f"linear_{i}"]["w"] + theta[f"linear_{i}"]["b"]
        x = np.maximum(x, 0) if i < 2 else x
    return x[:, 0], x[:, 1], x[:, 2:].mean(axis=0)


def by_hand(theta, params, grads, losses, validation):
    """The equations, one tensor and one feature at a time, with step_mult 0.2 and exp_mult 0.3."""
    theta, names = jax.tree.map(np.asarray, theta), sorted(params)
    params = {n: np.asarray(p) for n, p in params.items()}
    start = theta["state"]
    carry = {n: (start["hidden"], start["cell"], start["from_mlp"]) for n in names}
    m = {n: np.zeros((*p.shape, 5)) for n, p in params.items()}
    r, to_all, size, mean, var, other = dict(m), start["to_all"], 0.01, 0.0, 0.0, 0.0
    for t in range(len(losses)):
        loss = losses[t]
        mean = 0.9 * mean + 0.1 * loss
        var = 0.9 * var + 0.1 * (mean - loss) ** 2
        other = 0.95 * other + 0.05 * validation[t]
        c = 1 / (1 - 0.9 ** (t + 1))
        seen = [loss, other / (1 - 0.95 ** (t + 1))]
        z = np.clip((np.array(seen) - c * mean) / np.sqrt(c * var + 1e-8), -5, 5)
        limit, squares, hidden, new = 10 * size / (1 - 0.99 ** (t + 1)), [], [], {}
        for n in names:
            g = np.clip(np.asarray(grads[n][t]), -limit, limit)
            squares.append((g**2).mean())
            m[n] = DECAYS * m[n] + (1 - DECAYS) * g[..., None]
            r[n] = DECAYS * r[n] + (1 - DECAYS) * g[..., None] ** 2
            f = features_by_hand(g, m[n], r[n], params[n])
            f |= {"train_loss_feat": z[0], "valid_loss_feat": z[1]}
            h, cell, from_mlp = carry[n]
            x = np.concatenate([to_all, from_mlp, [f[name] for name in sorted(f)], h])
            gates = x @ theta["lstm"]["w"] + theta["lstm"]["b"]
            i, candidate, forget, out = np.split(gates, 4)
            cell = cell / (1 + np.exp(-forget - 1)) + np.tanh(candidate) / (1 + np.exp(-i))
            h = np.tanh(cell) / (1 + np.exp(-out))
            message = h @ theta["to_mlp"]["w"] + theta["to_mlp"]["b"]
            a, s, from_mlp = entries_by_hand(
                theta["mlp"], t, len(names), g, m[n], r[n], params[n], message
            )
            new[n] = params[n] - 0.2 * (a * np.exp(0.3 * s)).reshape(params[n].shape)
            carry[n] = h, cell, from_mlp
            hidden.append(h @ theta["to_all"]["w"] + theta["to_all"]["b"])
        size = 0.99 * size + 0.01 * np.sqrt(1e-8 + np.mean(squares))
        to_all, params = np.mean(hidden, axis=0), new
    return params, carry


@pytest.mark.usefixtures("x64")
@pytest.mark.compiles
def test_follows_the_equations():
    learned = rnn_mlp(hidden_size=3, lstm_size=2, step_mult=0.2, exp_mult=0.3)
    theta = perturbed(learned)
    inputs = problem()
    actual, state = run(learned, theta, *inputs)
    expected, carry = by_hand(theta, *inputs)
    for index, name in enumerate(sorted(SHAPES)):
        np.testing.assert_allclose(actual[name][-1], expected[name], rtol=1e-8)
        np.testing.assert_allclose(state.carry.hidden[index], carry[name][0], rtol=1e-8)
        np.testing.assert_allclose(state.from_mlp[index], carry[name][2], rtol=1e-8)


@pytest.mark.compiles
def test_validation_losses_count_only_where_they_are_given():
    learned = rnn_mlp(hidden_size=3, lstm_size=2, step_mult=0.2)
    theta = perturbed(learned)
    params, grads, losses, validation = problem()
    with_them, state = run(learned, theta, params, grads, losses, validation)
    without, other = run(learned, theta, params, grads, losses, None)
    assert (state.validation.count, other.validation.count) == (4, 0)
    assert helpers.relative_error(with_them, without) > 1e-3


def test_has_as_many_weights_as_the_original():
    theta = rnn_mlp().init(jax.random.key(0))
    expected = (
        116 * 256 + 256 + 65 * (18 + 17) + 54 * 32 + 32 * 32 + 64 + 33 * 18 + 2 * 64 + 16 + 18
    )
    assert sum(x.size for x in jax.tree.leaves(theta)) == expected == 35799


@pytest.mark.compiles
def test_keeps_dtypes_and_accumulates_in_float32():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    learned = rnn_mlp(hidden_size=2, lstm_size=2)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    updates, state = jax.jit(opt.update)(params, opt.init(params), params, value=1.0)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32, jnp.bfloat16]
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 for x in floats)


@pytest.mark.slow
def test_meta_gradients_are_finite_on_awkward_inputs():
    learned = rnn_mlp(hidden_size=3, lstm_size=2)
    params = unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "scalar": ()})
    params |= {"zeros": jnp.zeros(2)}
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


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_meta_gradients_match_central_differences():
    learned = rnn_mlp(hidden_size=2, hidden_layers=1, lstm_size=2, step_mult=0.1, exp_mult=0.1)
    theta = perturbed(learned)
    params = unrolled.params_like(jax.random.key(1), {"w": (3, 2), "b": (2,)}, jnp.float64)
    grads = {n: jnp.stack([0.2 * p, 0.5 * p + 0.1]) for n, p in params.items()}

    def meta_loss(theta):
        return unrolled.final_loss(learned, theta, grads, params)

    actual = jax.jit(jax.grad(meta_loss))(theta)
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="rnn_mlp: hidden_size=0"):
        rnn_mlp(hidden_size=0)
    with pytest.raises(ValueError, match="rnn_mlp: lstm_size=0"):
        rnn_mlp(lstm_size=0)
    learned = rnn_mlp(hidden_size=2, lstm_size=2)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    params = {"w": jnp.ones((1, 1, 1, 1, 2))}
    with pytest.raises(ValueError, match="rnn_mlp: update needs params and the loss"):
        opt.update(params, opt.init(params), params)
    with pytest.raises(ValueError, match="rnn_mlp: a tensor has more than 4 axes"):
        opt.update(params, opt.init(params), params, value=jnp.ones(()))
