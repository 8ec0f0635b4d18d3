"""Trajectories of jaxopt's convex solvers, written by `benchmarks/peer_jaxopt_solvers.py`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import optimizers

RECORD = json.loads((Path(__file__).parent / "golden_solvers.json").read_text())
STEPS = 50
MATRIX = np.sin(np.outer(np.arange(1.0, 13.0), np.arange(1.0, 9.0)))
TARGET = np.cos(np.arange(1.0, 13.0))


def loss(x):
    """Half of the squared residual of twelve equations in eight unknowns."""
    return 0.5 * jnp.sum((jnp.asarray(MATRIX) @ x - jnp.asarray(TARGET)) ** 2)


def soft_threshold(x, step_size):
    """The proximal operator of the absolute value in the record."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - RECORD["settings"]["alpha"] * step_size, 0)


def counterparts() -> dict:
    """Ours for each trajectory: (what it is, a solver)."""
    smoothness, rate = RECORD["settings"]["smoothness"], RECORD["settings"]["rate"]
    on_simplex = optimizers.euclidean_map(optax.projections.projection_simplex)
    settings = {"average": False}
    return {
        "gradient descent, accelerated": ("agd", optimizers.agd(smoothness)),
        "proximal gradient, accelerated, lasso": (
            "fista",
            optimizers.fista(soft_threshold, smoothness),
        ),
        "projected gradient, simplex": (
            "mirror_descent, euclidean_map",
            optimizers.mirror_descent(on_simplex, 1 / smoothness, **settings),
        ),
        "mirror descent, entropy": (
            "mirror_descent, entropy_map",
            optimizers.mirror_descent(optimizers.entropy_map(), rate, **settings),
        ),
    }


def difference(name: str) -> float:
    """Largest difference of ours to a trajectory, over all steps kept."""
    what, solver = counterparts()[name]
    is_simplex = "mirror" in what
    start = jnp.ones(8) / 8 if is_simplex else jnp.ones(8)
    to_params = jnp.exp if "entropy" in what else jnp.asarray

    def step(state, _):
        state = solver.update(loss, state)
        return state, to_params(state.dual) if is_simplex else state.params

    path = jax.jit(lambda x: jax.lax.scan(step, solver.init(x), length=STEPS)[1])(start)
    kept = RECORD["runs"][name].items()
    return max(float(np.abs(path[int(step) - 1] - np.asarray(x)).max()) for step, x in kept)
