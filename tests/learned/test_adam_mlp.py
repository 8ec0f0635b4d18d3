import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import _adam_mlp as module
from metaopt.learned import adam_mlp
from tests.learned import unrolled

SHIPPED = {"nesterov": True, "orthogonalise": True, "normalise_output": True, "decay_power": 2.0}


def trajectory(opt, params, grads):
    """Parameters after each of a sequence of gradients."""

    def step(carry, grads):
        params, state = carry
        updates, state = opt.update(grads, state, params, value=jnp.zeros(()))
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, opt.init(p)), g)[1])(params, grads)


def sequence(num_steps, scale=1.0):
    params = unrolled.params_like(jax.random.key(1))
    shapes = {name: (num_steps, *p.shape) for name, p in params.items()}
    grads = unrolled.params_like(jax.random.key(2), shapes)
    return params, jax.tree.map(lambda g: scale * g, grads)


def perturbed(learned, scale=0.3):
    leaves, treedef = jax.tree.flatten(learned.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten([x + y for x, y in zip(leaves, noise, strict=True)])


@pytest.mark.compiles
@pytest.mark.parametrize("nesterov", [False, True])
def test_starts_as_adam(x64, nesterov):
    learned = adam_mlp(1e-2, nesterov=nesterov)
    params, grads = sequence(20)
    adam = _nesterov(1e-2) if nesterov else optax.adam(1e-2, eps=0.0, eps_root=1e-16)
    actual = trajectory(learned.optimizer(learned.init(jax.random.key(0))), params, grads)
    expected = trajectory(optax.with_extra_args_support(adam), params, grads)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-9, err_msg=name)


def _nesterov(learning_rate):
    """Adam with b1 m + (1 - b1) g, both corrected, in place of m."""

    def direction(grads, state, params=None):
        count, m, r = state
        count = count + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        r = jax.tree.map(lambda r, g: 0.999 * r + 0.001 * g**2, r, grads)

        def one(m, r, g):
            ahead = (0.9 * m + 0.1 * g) / (1 - 0.9**count)
            return -learning_rate * ahead / jnp.sqrt(r / (1 - 0.999**count) + 1e-16)

        return jax.tree.map(one, m, r, grads), (count, m, r)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros(()), zeros, zeros

    return optax.GradientTransformation(init, direction)


@pytest.mark.compiles
@pytest.mark.parametrize("settings", [{}, SHIPPED], ids=["adam", "shipped"])
def test_one_call_for_all_tensors_is_one_call_for_each(monkeypatch, settings):
    learned = adam_mlp(0.1, **settings)
    theta, (params, grads) = perturbed(learned), sequence(5)
    opt = learned.optimizer(theta, num_steps=8)
    together = trajectory(opt, params, grads)
    monkeypatch.setattr(module, "JOINT_ENTRIES", 0)
    apart = trajectory(opt, params, grads)
    for name, value in apart.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.compiles
def test_three_steps_of_all_learned_parts_by_hand(x64):
    learned = adam_mlp(0.1, **SHIPPED, vector_mult=3.0, weight_decay=0.2)
    theta, (params, grads) = perturbed(learned), sequence(3)
    actual = trajectory(learned.optimizer(theta, num_steps=8), params, grads)
    weights = jax.tree.map(np.asarray, theta)
    for name, start in params.items():
        value = np.atleast_1d(np.asarray(start))
        state = (np.zeros((3, *value.shape)), np.zeros(value.shape), None)
        for t in range(3):
            grad = np.atleast_1d(np.asarray(grads[name][t]))
            value, state = by_hand(weights, value, grad, state, t)
            expected = value.reshape(np.shape(start))
            np.testing.assert_allclose(actual[name][t], expected, rtol=1e-8, err_msg=name)


def by_hand(theta, p, g, state, t):
    """One step of one tensor in NumPy, at the settings of the test above; T = 8."""
    b = np.array([0.9, 0.99, 0.999]).reshape((-1,) + (1,) * g.ndim)
    m, r, factors = state
    m, r = b * m + (1 - b) * g, 0.999 * r + 0.001 * g**2
    factors, precondition = factored(factors, g)
    mean_m, mean_r = m / (1 - b ** (t + 1)), r / (1 - 0.999 ** (t + 1))
    rho = 1 / np.sqrt(mean_r + 1e-16)
    base = 0.9 * mean_m[0] + 0.1 * g / (1 - 0.9 ** (t + 1))
    planes = [g, p, *mean_m, *(mean_m * rho), g * rho, *(precondition * g)]
    planes += [*(precondition * mean_m), rho, base * rho, base]
    extra, gain = network(theta["network"], np.stack([unit(x).ravel() for x in planes]))
    whole = [*[np.mean((x * rho) ** 2) for x in mean_m]]
    whole += [np.mean(unit(g) * unit(x)) for x in mean_m]
    whole += [0.1 * np.log(np.mean(p**2) + 1e-12), g.ndim == 1, g.ndim == 2, g.ndim > 2]
    whole += [0.2 * np.log(np.prod(g.shape[:-1])), 0.2 * np.log(g.shape[-1])]
    whole += [0.1 * np.log(t + 1), 1 / (t + 1), t / 8, (t / 8) ** 2]
    size, odds = network(theta["tensor"], np.array(whole, float)[:, None])[:, 0]
    gain = np.exp(np.clip(gain, -3, 3)).reshape(g.shape)
    size = np.exp(np.clip(size, -3, 3))
    if g.ndim < 2:
        step = unit(base * rho * gain + extra.reshape(g.shape)) * size * np.exp(theta["vector"])
    else:
        z = unit(base) * gain + extra.reshape(g.shape)
        blend = 1 / (1 + np.exp(3 - odds - theta["blend"]))
        step = ((1 - blend) * unit(orthogonalised(z)) + blend * unit(z)) * size
    decay = (1 - t / 8) ** np.exp(theta["decay"])
    return p - 0.1 * decay * (step + 0.2 * p), (m, r, factors)


def unit(x):
    return x / np.sqrt(np.mean(x**2) + 1e-16)


def network(layers, x):
    for index in range(len(layers)):
        layer = layers[f"linear_{index}"]
        x = layer["w"].T @ (np.maximum(x, 0) if index else x) + layer["b"][:, None]
    return x


def orthogonalised(z):
    y = z.reshape(-1, z.shape[-1])
    y = y.T if y.shape[0] > y.shape[1] else y
    y = y / np.sqrt(np.sum(y**2) + 1e-16)
    for _ in range(5):
        gram = y @ y.T
        y = 3.4445 * y + (2.0315 * gram @ gram - 4.775 * gram) @ y
    return (y.T if np.prod(z.shape[:-1]) > z.shape[-1] else y).reshape(z.shape)


def factored(state, g):
    """Adafactor's second moments, and what they precondition with."""
    decays, square = np.array([0.9, 0.99, 0.999]), g**2 + 1e-30
    if g.ndim < 2:
        full = [np.zeros(g.shape)] * 3 if state is None else state
        full = [d * x + (1 - d) * square for d, x in zip(decays, full, strict=True)]
        return full, np.stack([1 / np.sqrt(x + 1e-9) for x in full])
    second, longest = np.argsort(g.shape, kind="stable")[-2:]
    state = [(0.0, 0.0)] * 3 if state is None else state
    row = [
        d * x + (1 - d) * square.mean(longest, keepdims=True)
        for d, (x, _) in zip(decays, state, strict=True)
    ]
    col = [
        d * x + (1 - d) * square.mean(second, keepdims=True)
        for d, (_, x) in zip(decays, state, strict=True)
    ]
    factors = [
        1 / np.sqrt(x / (x.mean(second, keepdims=True) + 1e-9)) / np.sqrt(np.maximum(y, 1e-9))
        for x, y in zip(row, col, strict=True)
    ]
    return list(zip(row, col, strict=True)), np.stack(factors)


@pytest.mark.compiles
def test_steps_have_the_size_of_the_learning_rate_at_first():
    settings = {**SHIPPED, "vector_mult": 3.0}
    learned = adam_mlp(0.01, **settings)
    params, grads = sequence(1)
    opt = learned.optimizer(learned.init(jax.random.key(0)), num_steps=8)
    updates, _ = opt.update(jax.tree.map(lambda g: g[0], grads), opt.init(params), params)
    for name, update in updates.items():
        rms = float(jnp.sqrt(jnp.mean(update**2)))
        # The blend of two unit directions is a little shorter than one.
        low, high = (0.009, 0.0101) if update.ndim > 1 else (0.0299, 0.0301)
        assert low < rms < high, name


@pytest.mark.compiles
def test_the_scale_of_gradients_does_not_matter():
    learned = adam_mlp(0.1, **SHIPPED)
    theta = perturbed(learned)
    params, grads = sequence(5)
    opt = learned.optimizer(theta, num_steps=8)
    plain = trajectory(opt, params, grads)
    scaled = trajectory(opt, params, jax.tree.map(lambda g: 100 * g, grads))
    for name, value in plain.items():
        np.testing.assert_allclose(scaled[name], value, rtol=2e-3, atol=2e-3, err_msg=name)


def test_the_decay_ends_at_zero():
    learned = adam_mlp(0.1, decay_power=2.0)
    params, grads = sequence(8)
    opt = learned.optimizer(learned.init(jax.random.key(0)), num_steps=6)
    values = trajectory(opt, params, grads)["matrix"]
    assert jnp.abs(values[5] - values[4]).max() > 0
    np.testing.assert_array_equal(values[6], values[5])
    np.testing.assert_array_equal(values[7], values[5])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, SHIPPED], ids=["adam", "shipped"])
def test_meta_gradients_are_finite(settings):
    learned = adam_mlp(0.1, **settings)
    params = unrolled.params_like(jax.random.key(1))
    theta = perturbed(learned, scale=0.1)
    sequences = unrolled.awkward_gradients(params, 4, jax.random.key(2))

    def loss(theta, grads):
        return unrolled.final_loss(learned, theta, grads, params)

    values, grads = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(theta, sequences)
    assert jnp.isfinite(values).all()
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0 is below 1"),
        ({"vector_mult": 0.0}, r"vector_mult=0\.0 is not positive"),
        ({"decay_power": -1.0}, r"decay_power=-1\.0 is not positive"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"adam_mlp: {message}"):
        adam_mlp(**settings)


def test_what_is_missing_is_named():
    learned = adam_mlp(decay_power=1.0)
    theta = learned.init(jax.random.key(0))
    with pytest.raises(ValueError, match="num_steps=None, but the decay"):
        learned.optimizer(theta)
    params = {"w": jnp.ones(2)}
    opt = learned.optimizer(theta, num_steps=3)
    with pytest.raises(ValueError, match="got no params"):
        opt.update(params, opt.init(params))


@pytest.mark.compiles
def test_without_a_network_of_entries_is_with_a_silent_one():
    full, lean = (adam_mlp(0.1, residual=residual, **SHIPPED) for residual in (True, False))
    theta = full.init(jax.random.key(0))
    theta["tensor"] = perturbed(full)["tensor"]
    assert set(lean.init(jax.random.key(0))) == {"tensor", "vector", "blend", "decay"}
    params, grads = sequence(5)
    expected = trajectory(full.optimizer(theta, num_steps=8), params, grads)
    del theta["network"]
    actual = trajectory(lean.optimizer(theta, num_steps=8), params, grads)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
