"""What the tests of VeLO and Celo share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.learned._published import scheduled_from_published
from tests.learned import reference, unrolled

SHAPES = {"bias": (5,), "matrix": (3, 4), "scalar": ()}


def theta_from(archive):
    return scheduled_from_published(reference.tree(archive, "theta"))


def perturbed(learned, scale=0.1):
    """Initial weights plus noise, so that biases and initial states count."""
    leaves, treedef = jax.tree.flatten(learned.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        x + scale * jax.random.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return treedef.unflatten(noisy)


def follow(learned, theta, params, grads, losses, *, num_steps):
    """Parameters after gradients and losses with a leading step axis."""
    opt = learned.optimizer(theta, num_steps=num_steps)

    def step(carry, fed):
        (params, state), (grads, loss) = carry, fed
        updates, state = opt.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, opt.init(params)), (grads, losses))[0]


def draw_run(num_steps=4):
    """Parameters, gradients and losses that are not monotone."""
    params = unrolled.params_like(jax.random.key(2), SHAPES)
    shapes = {name: (num_steps, *shape) for name, shape in SHAPES.items()}
    grads = unrolled.params_like(jax.random.key(3), shapes)
    return params, grads, jnp.asarray([2.0, 1.5, 9.0, 1.8, 1.2][:num_steps])


def as_lists(params, grads):
    """For NumPy, where a scalar is a vector of one entry."""
    names = list(params)
    flat = [np.atleast_1d(np.asarray(params[n])) for n in names]
    steps = [
        [np.atleast_1d(np.asarray(grads[n][t])) for n in names] for t in range(len(grads["scalar"]))
    ]
    return flat, steps


def check_ends(params, actual, expected):
    """Parameters against lists from NumPy, after steps that are not small."""
    for name, value in zip(params, expected, strict=True):
        assert np.abs(value - np.atleast_1d(params[name])).max() > 1e-3, name
        np.testing.assert_allclose(np.atleast_1d(actual[name]), value, rtol=1e-7, err_msg=name)


def check_final_state(archive, state, *, rtol=2e-5):
    """Accumulators, LSTM and losses against the original's."""
    moments = state.moments
    for name, second in moments.second.items():
        row, col = moments.factored.row[name], moments.factored.col[name]
        accumulators = [("mom_rolling/m", moments.momenta[name]), ("rms_rolling/rms", second)]
        if second.ndim > 2:
            accumulators += [("fac_rolling/v_row", row), ("fac_rolling/v_col", col)]
        else:
            accumulators += [("fac_rolling/v_diag", row)]
        for path, actual in accumulators:
            expected = np.moveaxis(archive[f"final_state/{path}/{name}"], -1, 0)
            np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=rtol)
    for name in ("hidden", "cell"):
        expected = archive[f"final_state/lstm_hidden_state/{name}"]
        actual = np.broadcast_to(getattr(state.lstm, name), expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    for path, actual in (("means", state.losses.means), ("running_min", state.losses.minima)):
        np.testing.assert_allclose(actual, archive[f"final_state/loss_buffer/{path}"], rtol=rtol)
    assert state.count == archive["final_state/iteration"]
