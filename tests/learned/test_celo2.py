import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import celo2, scale_by_celo2
from tests import helpers
from tests.learned import reference, unrolled


def theta_from(archive):
    """The original keeps the first layer as one array per group of features."""
    paths = reference.tree(archive, "theta/ff_mod_stack/~")
    first = jnp.concatenate([paths[f"w0__{i}"] for i in range(14)])
    weights = [first, paths["w1"], paths["w2"]]
    return {f"linear_{i}": {"w": w, "b": paths[f"b{i}"]} for i, w in enumerate(weights)}


def directions(theta, params, grads, **settings):
    """Directions of `scale_by_celo2` for each of a sequence of gradients, at fixed parameters."""
    opt = scale_by_celo2(theta, **settings)

    def step(state, grads):
        updates, state = opt.update(grads, state, params)
        return state, updates

    return jax.jit(lambda grads: jax.lax.scan(step, opt.init(params), grads)[1])(grads)


def sequence(key, params, num_steps, scale=1.0):
    keys = jax.random.split(key, num_steps)
    draw = jax.vmap(lambda k: unrolled.params_like(k, {n: p.shape for n, p in params.items()}))
    return jax.tree.map(lambda g: scale * g, draw(keys))


@pytest.fixture
def theta():
    return celo2().init(jax.random.key(0))


@pytest.fixture
def params():
    return unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "bias": (3,)})


@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(rolling, tolerance):
    archive = reference.load("celo2_base_loud")
    opt = celo2(0.1).optimizer(theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    moments = state[0]
    for name, second in moments.second.items():
        row, col = moments.factored.row[name], moments.factored.col[name]
        accumulators = [("mom_rolling/m", moments.momenta[name]), ("rms_rolling/rms", second)]
        if second.ndim > 2:
            accumulators += [("fac_rolling/v_row", row), ("fac_rolling/v_col", col)]
        else:
            accumulators += [("fac_rolling/v_diag", row)]
        for path, actual in accumulators:
            expected = np.moveaxis(archive[f"final_state/{path}/{name}"], -1, 0)
            np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=2e-5)


def test_has_347_weights(theta):
    assert sum(x.size for x in jax.tree.leaves(theta)) == 347


@pytest.mark.compiles
def test_the_learning_rate_is_the_rms_of_a_step(theta):
    params = unrolled.params_like(jax.random.key(1))
    grads = sequence(jax.random.key(2), params, 3)
    updates = directions(theta, params, grads)
    for name, y in updates.items():
        axes = tuple(range(max(1, y.ndim - 2), y.ndim)) if y.ndim > 1 else ()
        rms = np.sqrt(np.mean(np.square(np.asarray(y, np.float64)), axis=axes))
        np.testing.assert_allclose(rms, 1, atol=1e-4, err_msg=name)


def test_norm_axes_none_normalises_whole_tensors(theta):
    params = unrolled.params_like(jax.random.key(1), {"kernel": (2, 3, 2, 2)})
    updates = directions(theta, params, sequence(jax.random.key(2), params, 3), norm_axes=None)
    rms = np.sqrt(np.mean(np.square(updates["kernel"]), axis=(1, 2, 3, 4)))
    np.testing.assert_allclose(rms, 1, atol=1e-4)
    per_tap = np.sqrt(np.mean(np.square(updates["kernel"]), axis=(3, 4)))
    assert np.ptp(per_tap) > 0.01


def test_ignores_the_scale_of_large_gradients(theta):
    # Invariance is up to the epsilons (small squared second moments fall below the 1e-9 of the
    # normaliser) and to the clips at 0.1 (all entries above it here) and at 1000 (all below).
    params = {"matrix": jax.random.normal(jax.random.key(1), (4, 3))}
    grads = sequence(jax.random.key(2), params, 10)
    grads = jax.tree.map(lambda g: 10 * jnp.sign(g) * (1 + jnp.minimum(jnp.abs(g), 2)), grads)
    once, scaled, clipped, vanishing = (
        directions(theta, params, jax.tree.map(lambda g, a=a: a * g, grads))
        for a in (1, 10, 1e6, 1e-3)
    )
    assert helpers.relative_error(scaled, once) < 1e-3
    assert helpers.relative_error(clipped, once) > 1e-2
    assert helpers.relative_error(vanishing, once) > 1e-2


def test_commutes_with_transposition_unless_square(theta):
    def deviation(shape):
        params = {"w": jax.random.normal(jax.random.key(1), shape)}
        grads = {"w": jax.random.normal(jax.random.key(2), (3, *shape))}
        flipped = jax.tree.map(jnp.matrix_transpose, (params, grads))
        expected = jnp.matrix_transpose(directions(theta, params, grads)["w"])
        return helpers.relative_error(directions(theta, *flipped)["w"], expected)

    assert deviation((5, 3)) < 1e-5
    assert deviation((4, 4)) > 1e-3


@pytest.mark.compiles
def test_orthogonalises_matrices_by_newton_schulz(theta):
    params = unrolled.params_like(
        jax.random.key(1), {"tall": (6, 3), "stack": (2, 3, 4), "bias": (3,)}
    )
    grads = sequence(jax.random.key(2), params, 2)
    base = directions(theta, params, grads)
    actual = directions(theta, params, grads, orthogonalise=True)
    for name in ("tall", "stack"):
        expected = orthogonal_direction(np.asarray(base[name], np.float64))
        np.testing.assert_allclose(actual[name], expected, atol=2e-4, err_msg=name)
    np.testing.assert_array_equal(actual["bias"], base["bias"])


def orthogonal_direction(matrices):
    """By singular values: the iteration maps each by the same odd polynomial."""
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    s = s / np.linalg.norm(s, axis=-1, keepdims=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    y = (u * s[..., None, :]) @ vt
    return y / np.sqrt(np.mean(y**2, axis=(-2, -1), keepdims=True))


def test_decays_weights_and_follows_a_schedule(theta, params):
    grads = sequence(jax.random.key(2), params, 1)
    first = jax.tree.map(lambda g: g[0], grads)
    y = jax.tree.map(lambda y: y[0], directions(theta, params, grads))
    opt = celo2(optax.constant_schedule(0.5), weight_decay=0.1).optimizer(theta)
    updates, _ = jax.jit(opt.update)(first, opt.init(params), params)
    expected = jax.tree.map(lambda y, p: -0.5 * (y + 0.1 * p), y, params)
    assert helpers.relative_error(updates, expected) < 1e-5


def test_serves_some_tensors_of_a_multi_transform(theta, params):
    grads = jax.tree.map(lambda p: 0.3 * p + 1, params)
    labels = jax.tree.map(lambda p: "celo2" if p.ndim >= 2 else "sgd", params)
    opt = optax.multi_transform({"celo2": scale_by_celo2(theta), "sgd": optax.sgd(1.0)}, labels)
    updates, _ = jax.jit(opt.update)(grads, opt.init(params), params)
    sequence_of_one = jax.tree.map(lambda g: g[None], grads)
    expected = directions(theta, params, sequence_of_one)
    np.testing.assert_allclose(updates["matrix"], expected["matrix"][0], rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], -grads["bias"])


def test_keeps_dtypes_and_accumulates_in_float32(theta):
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    opt = scale_by_celo2(theta)
    updates, state = jax.jit(opt.update)(grads, opt.init(params), params)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32, jnp.bfloat16]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


@pytest.mark.slow
@pytest.mark.parametrize("orthogonalise", [False, True])
def test_meta_gradients_are_finite_on_awkward_inputs(theta, params, orthogonalise):
    learned = celo2(orthogonalise=orthogonalise)
    cases = unrolled.awkward_gradients(params, 20, jax.random.key(3))
    grad = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda theta, g, p: unrolled.final_loss(learned, theta, g, p)),
            in_axes=(None, 0, None),
        )
    )
    losses, grads = grad(theta, cases, params)
    assert np.isfinite(losses).all()
    assert np.isfinite(helpers.ravel(grads)).all()


@pytest.mark.compiles
def test_meta_gradients_match_central_differences(x64):
    learned = celo2(0.1, hidden_size=2, hidden_layers=1)
    theta = learned.init(jax.random.key(0))
    params = unrolled.params_like(jax.random.key(1), {"w": (3, 2), "b": (2,)}, jnp.float64)
    grads = {n: jnp.stack([0.02 * p, 0.05 * p + 0.01]) for n, p in params.items()}

    def meta_loss(theta):
        return unrolled.final_loss(learned, theta, grads, params)

    actual = helpers.ravel(jax.jit(jax.grad(meta_loss))(theta))
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6


def test_nan_gradients_stay_visible(theta, params):
    grads = jax.tree.map(lambda p: jnp.full((1, *p.shape), jnp.nan), params)
    assert all(jnp.isnan(y).all() for y in jax.tree.leaves(directions(theta, params, grads)))


def test_rejects_bad_settings(theta):
    with pytest.raises(ValueError, match="celo2: hidden_size=0"):
        celo2(hidden_size=0)
    with pytest.raises(ValueError, match="celo2: norm_axes=0"):
        celo2(norm_axes=0)
    with pytest.raises(ValueError, match="scale_by_celo2: norm_axes=0"):
        scale_by_celo2(theta, norm_axes=0)
    opt = scale_by_celo2(theta)
    with pytest.raises(ValueError, match="pass update"):
        opt.update({"w": jnp.ones(2)}, opt.init({"w": jnp.ones(2)}))


@pytest.mark.compiles
def test_steps_through_flax_nnx_as_through_optax(theta):
    nnx = pytest.importorskip("flax.nnx")
    tx = celo2(0.1).optimizer(theta)
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = {"kernel": model.kernel[...], "bias": model.bias[...]}
    state, optimizer = tx.init(params), nnx.Optimizer(model, tx, wrt=nnx.Param)
    inputs = jnp.arange(12.0).reshape(4, 3)

    def loss(model):
        return jnp.mean(model(inputs) ** 2)

    for _ in range(3):
        optimizer.update(model, nnx.grad(loss)(model))
        grads = jax.grad(lambda p: jnp.mean((inputs @ p["kernel"] + p["bias"][None]) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(model.kernel[...], params["kernel"], rtol=1e-4)
    np.testing.assert_allclose(model.bias[...], params["bias"], rtol=1e-4)
