import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import tasks
from metaopt.learned import lstm
from tests import helpers
from tests.learned import unrolled


def perturbed(learned, scale=0.3):
    """Initial weights plus noise, so that biases count."""
    leaves, treedef = jax.tree.flatten(learned.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        x + scale * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return treedef.unflatten(noisy)


def trajectory(learned, theta, grads, params):
    """Updates for each of a sequence of gradients."""
    opt = learned.optimizer(theta)

    def step(state, grads):
        updates, state = opt.update(grads, state)
        return state, updates

    return jax.jit(lambda grads: jax.lax.scan(step, opt.init(params), grads)[1])(grads)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(theta, grads, *, raw):
    """One coordinate at a time; gates in the order input, candidate, forget, output."""
    theta, steps = jax.tree.map(np.asarray, theta), []
    carry = [(np.zeros(3), np.zeros(3)) for _ in range(2)]
    for g in grads:
        x = [np.maximum(np.log(abs(g) + 2.0**-23) / 5, -1), np.clip(np.exp(5) * g, -1, 1)]
        x = np.array([g] if raw else x)
        for i in range(2):
            h, c = carry[i]
            gates = np.concatenate([x, h]) @ theta[f"lstm_{i}"]["w"] + theta[f"lstm_{i}"]["b"]
            gate_in, candidate, forget, out = gates.reshape(4, 3)
            c = sigmoid(forget + 1) * c + sigmoid(gate_in) * np.tanh(candidate)
            x = sigmoid(out) * np.tanh(c)
            carry[i] = x, c
        steps.append(0.5 * (x @ theta["linear"]["w"] + theta["linear"]["b"])[0])
    return np.array(steps)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("preprocess", ["log_sign", "raw"])
def test_follows_the_equations_on_every_coordinate(preprocess):
    learned = lstm(hidden_size=3, preprocess=preprocess, output_scale=0.5)
    theta = perturbed(learned)
    params = {"scalar": jnp.zeros(()), "matrix": jnp.zeros((2, 2))}
    # Both sides of exp(-5) = 0.0067, and 0.
    matrix = np.array([[0.3, -0.001], [2.0, 0.0]]) * np.array([1.0, -2.0, 0.5])[:, None, None]
    grads = {"scalar": np.array([1.0, 1e-4, -0.2]), "matrix": matrix}
    actual = trajectory(learned, theta, jax.tree.map(jnp.asarray, grads), params)
    for name, updates in actual.items():
        columns = grads[name].reshape(3, -1).T
        expected = np.stack([by_hand(theta, g, raw=preprocess == "raw") for g in columns], axis=1)
        np.testing.assert_allclose(updates.reshape(3, -1), expected, rtol=1e-9)


def test_has_5141_weights():
    theta = lstm().init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == 5141
    assert sum(x.size for x in jax.tree.leaves(lstm().optimizer(theta).init(jnp.zeros(7)))) == 560


def test_permuting_coordinates_permutes_the_trajectory():
    family = tasks.least_squares(dim=4)
    learned = lstm(hidden_size=3, preprocess="raw", output_scale=1.0)
    opt = learned.optimizer(perturbed(learned))
    task = family.sample(jax.random.key(0))
    order = jnp.array([2, 0, 3, 1])
    permuted = task._replace(matrix=task.matrix[:, order])

    @jax.jit
    def run(task, x):
        def step(carry, _):
            x, state = carry
            grads = jax.grad(lambda x: family.loss(x, task, (), None)[0])(x)
            updates, state = opt.update(grads, state, x)
            return (optax.apply_updates(x, updates), state), x

        return jax.lax.scan(step, (x, opt.init(x)), length=6)[1]

    x = family.init(task, jax.random.key(1))
    straight = run(task, x)
    np.testing.assert_allclose(run(permuted, x[order]), straight[:, order], rtol=2e-4, atol=1e-5)
    assert np.abs(straight[-1] - straight[-1][order]).max() > 0.01


def test_how_coordinates_are_divided_into_tensors_does_not_matter():
    learned = lstm(hidden_size=3)
    theta = perturbed(learned)
    flat = jax.random.normal(jax.random.key(2), (3, 6))
    whole = trajectory(learned, theta, flat, jnp.zeros(6))
    split = {"b": flat[:, :4].reshape(3, 2, 2), "a": [flat[:, 4], flat[:, 5:]]}
    params = {"b": jnp.zeros((2, 2)), "a": [jnp.zeros(()), jnp.zeros(1)]}
    parts = trajectory(learned, theta, split, params)
    joined = jnp.concatenate(
        [parts["b"].reshape(3, 4), parts["a"][0][:, None], parts["a"][1]], axis=1
    )
    np.testing.assert_allclose(joined, whole, rtol=1e-6)


def test_keeps_dtypes_and_remembers_in_float32():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    learned = lstm(hidden_size=2)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    updates, state = jax.jit(opt.update)(params, opt.init(params), params)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32, jnp.bfloat16]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


@pytest.mark.parametrize("preprocess", ["log_sign", "raw"])
def test_meta_gradients_are_finite_on_awkward_inputs(preprocess):
    learned = lstm(hidden_size=3, preprocess=preprocess)
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
    learned = lstm(hidden_size=2, output_scale=0.3)
    theta = perturbed(learned)
    params = unrolled.params_like(jax.random.key(1), {"w": (3, 2), "b": (2,)}, jnp.float64)
    grads = {n: jnp.stack([0.2 * p, 0.5 * p + 0.1, 0.001 * p]) for n, p in params.items()}

    def meta_loss(theta):
        return unrolled.final_loss(learned, theta, grads, params)

    actual = jax.jit(jax.grad(meta_loss))(theta)
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6


def test_nan_gradients_stay_visible_where_they_are():
    learned = lstm(hidden_size=2)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    grads = {"w": jnp.array([1.0, jnp.nan]), "b": jnp.ones(2)}
    updates, _ = jax.jit(opt.update)(grads, opt.init(grads))
    np.testing.assert_array_equal(jnp.isnan(updates["w"]), [False, True])
    assert not jnp.isnan(updates["b"]).any()


def test_empty_trees_pass():
    opt = lstm().optimizer(lstm().init(jax.random.key(0)))
    assert opt.update({}, opt.init({}))[0] == {}


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="lstm: hidden_size=0"):
        lstm(hidden_size=0)
    with pytest.raises(ValueError, match="lstm: num_layers=0"):
        lstm(num_layers=0)
    with pytest.raises(ValueError, match="lstm: preprocess='log'"):
        lstm(preprocess="log")
