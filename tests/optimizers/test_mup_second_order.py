import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import scale_by_mup
from metaopt.optimizers import mup_second_order, scale_by_shampoo

ROLES = ["input", "hidden", "output"]
LAYERS = range(3)


def data(num=16):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 8)), rng.normal(size=(num, 4))


@functools.cache
def draws(width):
    """Normal weights, units in rows; a wider network has other ones."""
    rng = np.random.default_rng(width)
    return [rng.normal(size=shape) for shape in ((width, 8), (width, width), (4, width))]


def scales(width, method, *, standard=False):
    """Those of μP, or of the standard form: variance 1/fan_in, constant rates and dampings."""
    if standard:
        return [1.0, width**-0.5, width**-0.5], [1.0] * 3, [1.0] * 3, [1.0] * 3
    return mup_second_order(list(LAYERS), ROLES, width=width, method=method)


def forward(weights, inputs):
    """Preactivations of each layer, and activations that it is given."""
    given, pre = [inputs], []
    for weight in weights:
        pre.append(given[-1] @ weight.T)
        given.append(np.tanh(pre[-1]))
    return pre, given[:-1]


def gradients(weights, inputs, targets):
    """Of half the mean squared error: deltas of each example and gradients, by hand."""
    pre, given = forward(weights, inputs)
    delta = pre[-1] - targets
    deltas = [delta]
    for weight, below in zip(weights[:0:-1], pre[-2::-1], strict=True):
        delta = (delta @ weight) * (1 - np.tanh(below) ** 2)
        deltas.insert(0, delta)
    return deltas, [d.T @ x / len(inputs) for d, x in zip(deltas, given, strict=True)], given


def shampoo_step(gradient, left, right, rho=1e-3):
    u, s, vt = np.linalg.svd(gradient, full_matrices=False)
    return (u * (s**2 + rho * left) ** -0.25 * s * (s**2 + rho * right) ** -0.25) @ vt


def kfac_step(gradient, delta, given, left, right, rho=1e-2):
    b = delta.T @ delta / len(delta) + rho * left * np.eye(delta.shape[1])
    a = given.T @ given / len(given) + rho * right * np.eye(given.shape[1])
    return np.linalg.solve(b, np.linalg.solve(a, gradient.T).T)


def slopes(method, *, standard=False, widths=(64, 128, 256, 512, 1024)):
    """How each layer's change by one step grows with the width, log over log."""
    inputs, targets = data()
    changes = []
    for width in widths:
        init, rate, left, right = scales(width, method, standard=standard)
        weights = [init[i] * draws(width)[i] for i in LAYERS]
        weights[0] = weights[0] / np.sqrt(8)
        deltas, grads, given = gradients(weights, inputs, targets)
        row = []
        for i in LAYERS:
            step = (
                shampoo_step(grads[i], left[i], right[i])
                if method == "shampoo"
                else kfac_step(grads[i], deltas[i], given[i], left[i], right[i])
            )
            row.append(np.sqrt(np.mean((0.01 * rate[i] * given[i] @ step.T) ** 2)))
        changes.append(row)
    return np.polyfit(np.log(widths), np.log(changes), 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bar"), [("shampoo", 0.05), ("kfac", 0.12)])
def test_what_a_step_changes_does_not_depend_on_the_width(method, bar):
    ours, standard = slopes(method), slopes(method, standard=True)
    assert np.abs(ours).max() <= bar
    assert np.abs(standard).max() >= 0.4


@pytest.mark.slow
def test_with_a_relative_ridge_the_library_s_shampoo_needs_the_learning_rates_alone():
    inputs, targets = data()
    widths, changes = (32, 64, 128, 256), []
    for width in widths:
        init, rate, _, _ = scales(width, "shampoo")
        weights = [init[i] * draws(width)[i] for i in LAYERS]
        weights[0] = weights[0] / np.sqrt(8)
        _, grads, given = gradients(weights, inputs, targets)
        grads = [jnp.asarray(g, jnp.float32) for g in grads]
        tx = optax.chain(scale_by_shampoo(graft="none", ridge=1e-3), scale_by_mup(rate))
        steps, _ = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g)))(grads)
        changes.append([np.sqrt(np.mean((given[i] @ np.asarray(steps[i]).T) ** 2)) for i in LAYERS])
    found = np.polyfit(np.log(widths), np.log(changes), 1)[0]
    assert np.abs(found).max() <= 0.1


def test_scales_are_the_powers_of_the_width_that_the_table_has():
    params = {"in": {"w": 0, "b": 0}, "mid": 0, "out": {"w": 0, "b": 0}}
    roles = {
        "in": {"w": "input", "b": "bias"},
        "mid": "hidden",
        "out": {"w": "output", "b": "output_bias"},
    }
    shampoo = mup_second_order(params, roles, width=16)
    kfac = mup_second_order(params, roles, width=16, method="kfac")
    assert shampoo.init_scale["in"] == {"w": 1.0, "b": 0.0}
    assert (shampoo.init_scale["mid"], shampoo.init_scale["out"]["w"]) == (0.25, 1 / 16)
    assert shampoo.learning_rate["in"] == {"w": 4.0, "b": 4.0}
    assert shampoo.learning_rate["mid"] == 1.0
    assert shampoo.learning_rate["out"] == {"w": 0.25, "b": 1.0}
    assert (shampoo.left_damping["in"]["w"], shampoo.right_damping["out"]["w"]) == (1 / 16, 16.0)
    assert set(jax.tree.leaves(kfac.learning_rate)) == {1.0}
    assert (kfac.left_damping["mid"], kfac.right_damping["mid"]) == (1 / 16, 16.0)
    assert (kfac.left_damping["out"]["w"], kfac.right_damping["out"]["w"]) == (1.0, 16.0)


def test_half_the_power_makes_shampoo_blind_to_the_width():
    rates = mup_second_order([0, 0, 0], ROLES, width=64, exponent=0.5).learning_rate
    assert rates == [1.0, 1.0, 1.0]


def test_unknown_roles_and_widths_are_refused():
    with pytest.raises(ValueError, match="the role 'norm' is unknown"):
        mup_second_order([0], ["norm"], width=4)
    with pytest.raises(ValueError, match="width must be at least 1"):
        mup_second_order([0], ["input"], width=0)
