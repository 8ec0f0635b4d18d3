import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned import adafac_mlp
from tests import helpers
from tests.learned import reference, unrolled

BASE = np.array([0.9, 0.99, 0.999])


def theta_from(archive):
    network = reference.tree(archive, "theta/nn/~")
    return {
        "decays": {
            "momenta": jnp.asarray(archive["theta/momentum_decays"]),
            "second": jnp.asarray(archive["theta/rms_decays"]),
            "factored": jnp.asarray(archive["theta/adafactor_decays"]),
        },
        "network": {
            f"linear_{i}": {"w": network[f"w{i}"], "b": network[f"b{i}"]} for i in range(3)
        },
    }


def perturbed(learned, scale=0.05):
    """Initial weights plus noise, so that biases and decay offsets count."""
    theta = learned.init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten(
        [
            x + scale * jax.random.normal(k, x.shape, x.dtype)
            for x, k in zip(leaves, keys, strict=True)
        ]
    )


@pytest.mark.parametrize("name", ["adafac_mlp_lopt", "adafac_mlp_lopt_loud"])
@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(name, rolling, tolerance):
    archive = reference.load(name)
    mult = 0.1 if name.endswith("loud") else 1e-3
    opt = adafac_mlp(step_mult=mult, exp_mult=mult).optimizer(theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    assert state.count == 5
    moments = state.moments
    for tensor, second in moments.second.items():
        row, col = moments.factored.row[tensor], moments.factored.col[tensor]
        accumulators = [("mom_rolling/m", moments.momenta[tensor]), ("rms_rolling/rms", second)]
        if second.ndim > 2:
            features = "fac_rolling_features"
            accumulators += [(f"{features}/v_row", row), (f"{features}/v_col", col)]
        else:
            accumulators += [("fac_rolling_features/v_diag", row)]
        for path, actual in accumulators:
            expected = np.moveaxis(archive[f"final_state/{path}/{tensor}"], -1, 0)
            # A decay b is rounded to 6e-8, and 1 - b is as small as 4e-4 here.
            np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=2e-4)


def test_has_197_weights():
    theta = adafac_mlp().init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == 197
    assert not helpers.ravel(theta["decays"]).any()


def by_hand(theta, params, grads):
    """The equations on a (2, 3) matrix or a vector, decays last and one feature at a time."""
    theta = jax.tree.map(np.asarray, theta)
    b_m, b_r, b_f = (
        1 - (1 - base) * np.exp(10 * theta["decays"][name])
        for name, base in (("momenta", BASE), ("second", BASE[2:]), ("factored", BASE))
    )
    b_r, b_f = np.clip(b_r, 0, 1), np.clip(b_f, 0, 1)
    m = r = row = col = v = 0.0
    for t, grad in enumerate(grads):
        g, p = grad[..., None], params[..., None]
        m = b_m * m + (1 - b_m) * g
        r = b_r * r + (1 - b_r) * g**2
        if grad.ndim == 2:
            row = b_f * row + (1 - b_f) * (g**2).mean(axis=1, keepdims=True)
            col = b_f * col + (1 - b_f) * (g**2).mean(axis=0, keepdims=True)
            factor = 1 / np.sqrt(row / (row.mean(axis=0, keepdims=True) + 1e-9) * col)
            precond_m = factor * m
        else:
            v = b_f * v + (1 - b_f) * g**2
            row = col = v
            factor, precond_m = 1 / np.sqrt(v + 1e-9), m / np.sqrt(v + 1e-6)
        groups = [g, p, m, r, m / np.sqrt(r + 1e-6), 1 / np.sqrt(r + 1e-6), factor * g]
        groups += [row, col, 1 / np.sqrt(row + 1e-8), 1 / np.sqrt(col + 1e-8), precond_m]
        x = np.concatenate(
            [np.broadcast_to(f, (*grad.shape, f.shape[-1])) for f in groups], axis=-1
        )
        x = x / np.sqrt(1e-5 + (x**2).mean(axis=tuple(range(grad.ndim)), keepdims=True))
        scales = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
        clock = np.broadcast_to(np.tanh(t / scales - 1), (*grad.shape, 11))
        x = np.concatenate([x, clock], axis=-1)
        for i in range(2):
            layer = theta["network"][f"linear_{i}"]
            x = np.maximum(x @ layer["w"] + layer["b"], 0)
        layer = theta["network"]["linear_2"]
        a, s = np.moveaxis(x @ layer["w"] + layer["b"], -1, 0)
        params = params - 0.5 * a * np.exp(0.3 * s)
    return params


# The second offsets make a momentum decay negative and clip the decay of a second moment at 0.
@pytest.mark.parametrize("offsets", [None, (0.3, 0.5, -0.1)])
def test_three_steps_by_hand(x64, offsets):
    learned = adafac_mlp(step_mult=0.5, exp_mult=0.3)
    theta = perturbed(learned)
    if offsets is not None:
        theta["decays"] = {
            "momenta": jnp.asarray(offsets),
            "second": jnp.asarray([0.8]),
            "factored": jnp.asarray(offsets),
        }
    shapes = {"matrix": (2, 3), "bias": (3,)}
    params = unrolled.params_like(jax.random.key(2), shapes)
    grads = unrolled.params_like(jax.random.key(3), {n: (3, *s) for n, s in shapes.items()})
    opt = learned.optimizer(theta)

    def step(carry, grads):
        params, state = carry
        updates, state = opt.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    (actual, _), _ = jax.jit(lambda grads: jax.lax.scan(step, (params, opt.init(params)), grads))(
        grads
    )
    for name in shapes:
        expected = by_hand(theta, np.asarray(params[name]), np.asarray(grads[name]))
        assert np.abs(expected - params[name]).min() > 1e-4
        np.testing.assert_allclose(actual[name], expected, rtol=1e-9, atol=1e-9)


def test_keeps_dtypes_and_accumulates_in_float32():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    learned = adafac_mlp()
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    updates, state = jax.jit(opt.update)(grads, opt.init(params), params)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32, jnp.bfloat16]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.moments))


@pytest.mark.slow
def test_meta_gradients_are_finite_on_awkward_inputs():
    learned = adafac_mlp()
    params = unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "scalar": ()})
    # Gradients are not clipped, so their squares have to be finite.
    cases = jax.tree.map(
        lambda g: jnp.clip(g, -1e15, 1e15),
        unrolled.awkward_gradients(params, 20, jax.random.key(3)),
    )
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
def test_meta_gradients_match_central_differences(x64):
    learned = adafac_mlp(hidden_size=2, hidden_layers=1, step_mult=0.1, exp_mult=0.1)
    theta = perturbed(learned)
    params = unrolled.params_like(jax.random.key(1), {"w": (3, 2), "b": (2,)}, jnp.float64)
    grads = {n: jnp.stack([0.2 * p, 0.5 * p + 0.1, 0.1 - p]) for n, p in params.items()}

    def meta_loss(theta):
        return unrolled.final_loss(learned, theta, grads, params)

    actual = jax.jit(jax.grad(meta_loss))(theta)
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6
    assert all(jnp.abs(x).min() > 0 for x in jax.tree.leaves(actual["decays"]))


def test_nan_gradients_stay_visible():
    learned = adafac_mlp()
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    updates, _ = jax.jit(opt.update)(grads, opt.init(params), params)
    assert all(jnp.isnan(y).all() for y in jax.tree.leaves(updates))


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="adafac_mlp: hidden_size=0"):
        adafac_mlp(hidden_size=0)
    with pytest.raises(ValueError, match="adafac_mlp: hidden_layers=0"):
        adafac_mlp(hidden_layers=0)
    learned = adafac_mlp()
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="adafac_mlp: update got no params"):
        opt.update({"w": jnp.ones(2)}, opt.init({"w": jnp.ones(2)}))
