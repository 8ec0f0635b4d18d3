"""Trajectories of the original implementations, where the folder that holds them is present."""

import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "reference"
NUM_STEPS = 5


def load(name):
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no reference vectors: {name}.npz")
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def tree(archive, prefix):
    start = len(prefix) + 1
    return {k[start:]: jnp.asarray(v) for k, v in archive.items() if k.startswith(f"{prefix}/")}


def errors(archive, update, init, *, rolling):
    """Largest |difference| of parameters after each step, from stored or from own parameters."""
    params = tree(archive, "params/0")
    state, worst = init(params), []
    for t in range(NUM_STEPS):
        if not rolling:
            params = tree(archive, f"params/{t}")
        grads, loss = tree(archive, f"grads/{t}"), archive[f"loss/{t}"]
        updates, state = update(grads, state, params, loss)
        params = optax.apply_updates(params, updates)
        expected = tree(archive, f"params/{t + 1}")
        worst.append(max(float(jnp.abs(params[k] - expected[k]).max()) for k in expected))
    return np.array(worst), state
