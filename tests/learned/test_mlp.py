import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned import mlp
from tests import helpers
from tests.learned import reference, unrolled


def theta_from(archive):
    paths = reference.tree(archive, "theta/mlp/~")
    return {
        f"linear_{i}": {"w": paths[f"linear_{i}/w"], "b": paths[f"linear_{i}/b"]} for i in range(3)
    }


@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(rolling, tolerance):
    archive = reference.load("mlp_lopt_loud")
    opt = mlp(step_mult=0.1, exp_mult=0.1).optimizer(theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    assert state.count == 5
    for name, actual in state.momenta.items():
        expected = np.moveaxis(archive[f"final_state/rolling_features/m/{name}"], -1, 0)
        np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=2e-4)


def test_has_1762_weights():
    theta = mlp().init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(theta)) == 1762


@pytest.mark.compiles
def test_first_step_by_hand(x64):
    """One weight, one hidden unit: every line of the equations in numpy."""
    learned = mlp(hidden_size=1, hidden_layers=1, step_mult=0.5, exp_mult=0.3)
    theta = jax.tree.map(lambda w: w - 0.5, learned.init(jax.random.key(0)))
    g, p = 0.7, -1.3
    decays = np.array([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
    planes = np.concatenate([[g, p], (1 - decays) * g])
    x = np.concatenate([planes / np.sqrt(1e-5 + planes**2), np.full(11, np.tanh(-1.0))])
    hidden = np.maximum(x @ theta["linear_0"]["w"] + theta["linear_0"]["b"], 0)
    a, s = hidden @ theta["linear_1"]["w"] + theta["linear_1"]["b"]
    opt = learned.optimizer(theta)
    params, grads = {"w": jnp.asarray(p)}, {"w": jnp.asarray(g)}
    updates, _ = opt.update(grads, opt.init(params), params)
    assert hidden[0] > 0
    np.testing.assert_allclose(updates["w"], -0.5 * a * np.exp(0.3 * s), rtol=1e-12)


def test_keeps_dtypes_and_accumulates_in_float32():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    learned = mlp(hidden_size=4)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    updates, state = jax.jit(opt.update)(grads, opt.init(params), params)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32, jnp.bfloat16]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.momenta))


@pytest.mark.compiles
def test_meta_gradients_are_finite_on_awkward_inputs():
    learned = mlp(hidden_size=4)
    params = unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "scalar": ()})
    cases = unrolled.awkward_gradients(params, 20, jax.random.key(3))
    grad = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda theta, g, p: unrolled.final_loss(learned, theta, g, p)),
            in_axes=(None, 0, None),
        )
    )
    losses, grads = grad(learned.init(jax.random.key(0)), cases, params)
    assert np.isfinite(losses).all()
    assert np.isfinite(helpers.ravel(grads)).all()


@pytest.mark.compiles
def test_meta_gradients_match_central_differences(x64):
    learned = mlp(hidden_size=2, hidden_layers=1, step_mult=0.1, exp_mult=0.1)
    theta = learned.init(jax.random.key(0))
    params = unrolled.params_like(jax.random.key(1), {"w": (3, 2), "b": (2,)}, jnp.float64)
    grads = {n: jnp.stack([0.2 * p, 0.5 * p + 0.1]) for n, p in params.items()}

    def meta_loss(theta):
        return unrolled.final_loss(learned, theta, grads, params)

    actual = jax.jit(jax.grad(meta_loss))(theta)
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="mlp: hidden_size=0"):
        mlp(hidden_size=0)
    with pytest.raises(ValueError, match="mlp: hidden_layers=0"):
        mlp(hidden_layers=0)
    learned = mlp(hidden_size=2)
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="mlp: update got no params"):
        opt.update({"w": jnp.ones(2)}, opt.init({"w": jnp.ones(2)}))
