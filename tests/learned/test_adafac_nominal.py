import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned import adafac_mlp, adafac_nominal
from tests import helpers
from tests.learned import reference, test_adafac_mlp, unrolled


@pytest.mark.parametrize(("rolling", "tolerance"), [(False, 5e-6), (True, 1e-5)])
def test_follows_the_original_trajectory(rolling, tolerance):
    archive = reference.load("adafac_nominal_loud")
    learned = adafac_nominal(
        step_mult=0.1, nominal_step=0.01, weight_decay=0.01, exp_mults=(0.1, 0.1, 0.1)
    )
    opt = learned.optimizer(test_adafac_mlp.theta_from(archive), num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, state = reference.errors(archive, update, opt.init, rolling=rolling)
    assert errors.max() < tolerance
    assert state.count == 5
    for name, actual in state.moments.momenta.items():
        expected = np.moveaxis(archive[f"final_state/mom_rolling/m/{name}"], -1, 0)
        np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=2e-4)
    for name, actual in state.moments.second.items():
        expected = np.moveaxis(archive[f"final_state/rms_rolling/rms/{name}"], -1, 0)
        np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=2e-4)


def run(learned, theta, params, grads):
    """Updates for each of a sequence of gradients, at fixed parameters."""
    opt = learned.optimizer(theta)

    def step(state, grads):
        updates, state = opt.update(grads, state, params)
        return state, updates

    return jax.jit(lambda grads: jax.lax.scan(step, opt.init(params), grads)[1])(grads)


def problem():
    shapes = {"matrix": (4, 3), "bias": (3,)}
    params = unrolled.params_like(jax.random.key(2), shapes)
    grads = unrolled.params_like(jax.random.key(3), {n: (3, *s) for n, s in shapes.items()})
    return params, grads


@pytest.mark.usefixtures("x64")
def test_without_nominal_term_and_decay_it_is_adafac_mlp():
    learned = adafac_nominal(step_mult=0.5, nominal_step=0.0, exp_mults=(0.3, 0.1, 0.1))
    theta = test_adafac_mlp.perturbed(learned)
    assert sum(x.size for x in jax.tree.leaves(theta)) == 207
    plain = jax.tree.map(lambda x: x, theta)
    plain["network"]["linear_2"] = jax.tree.map(lambda x: x[..., :2], plain["network"]["linear_2"])
    actual = run(learned, theta, *problem())
    expected = run(adafac_mlp(step_mult=0.5, exp_mult=0.3), plain, *problem())
    assert helpers.relative_error(actual, expected) < 1e-12


def averages(grads, decays):
    """Averages of a sequence after its end, one per decay."""
    weights = [(1 - b) * b ** np.arange(len(grads) - 1, -1, -1) for b in decays]
    return np.stack([np.tensordot(w, grads, axes=1) for w in weights])


def nominal_direction(name, grads):
    m = averages(grads, (0.9, 0.99, 0.999))
    root = np.sqrt(averages(grads**2, (0.999,)) + 1e-6)
    return {
        "gradient": grads[-1],
        "momentum": m[-1],
        "mean_momentum": m.mean(axis=0),
        "adam": m[-1] / root[0],
        "mean_adam": (m / root).mean(axis=0),
    }[name]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("nominal", ["gradient", "momentum", "mean_momentum", "adam", "mean_adam"])
def test_a_network_of_constant_outputs_leaves_the_formula(nominal, control):
    learned = adafac_nominal(
        step_mult=0.5,
        nominal_step=0.2,
        weight_decay=0.1,
        exp_mults=(0.3, 0.4, 0.6),
        nominal=nominal,
        control_nominal=control,
        control_decay=control,
    )
    theta = jax.tree.map(jnp.zeros_like, learned.init(jax.random.key(0)))
    a, s, s_n, s_d = outputs = 0.7, -1.0, 0.5, 2.0
    theta["network"]["linear_2"]["b"] = jnp.array(outputs)
    params, grads = problem()
    updates = run(learned, theta, params, grads)
    for name, actual in updates.items():
        expected = -0.5 * a * np.exp(0.3 * s)
        expected = expected - 0.1 * np.exp(0.6 * s_d if control else 0) * np.asarray(params[name])
        direction = nominal_direction(nominal, np.asarray(grads[name]))
        expected = expected - 0.2 * np.exp(0.4 * (s_n if control else 1)) * direction
        np.testing.assert_allclose(actual[-1], expected, rtol=1e-9)


@pytest.mark.slow
def test_meta_gradients_are_finite_on_awkward_inputs():
    learned = adafac_nominal(weight_decay=0.01)
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
    losses, grads = grad(test_adafac_mlp.perturbed(learned), cases, params)
    assert np.isfinite(losses).all()
    assert np.isfinite(helpers.ravel(grads)).all()


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="adafac_nominal: hidden_size=0"):
        adafac_nominal(hidden_size=0)
    with pytest.raises(ValueError, match="adafac_nominal: nominal='sgd'"):
        adafac_nominal(nominal="sgd")
    learned = adafac_nominal()
    opt = learned.optimizer(learned.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="adafac_nominal: update got no params"):
        opt.update({"w": jnp.ones(2)}, opt.init({"w": jnp.ones(2)}))
