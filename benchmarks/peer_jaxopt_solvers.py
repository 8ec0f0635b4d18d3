"""Trajectories of jaxopt's convex solvers, in float64: what ours are held to.

    python benchmarks/peer_jaxopt_solvers.py --out tests/optimizers/golden_solvers.json

runs in an environment of its own (jaxopt, jax). The problems are least squares in eight unknowns
with a matrix of sines: alone, with an absolute value, and on the simplex.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import jaxopt  # noqa: E402
import numpy as np  # noqa: E402
from jaxopt.projection import projection_simplex  # noqa: E402
from jaxopt.prox import prox_lasso  # noqa: E402

STEPS, KEPT = 50, (1, 2, 5, 20, 50)
MATRIX = np.sin(np.outer(np.arange(1.0, 13.0), np.arange(1.0, 9.0)))
TARGET = np.cos(np.arange(1.0, 13.0))
SMOOTHNESS = float(np.linalg.norm(MATRIX, 2) ** 2)
ALPHA, RATE = 0.5, 0.1


def loss(x):
    """Half of the squared residual."""
    return 0.5 * jnp.sum((jnp.asarray(MATRIX) @ x - jnp.asarray(TARGET)) ** 2)


def exponentiated(x, gradient, step_size, hyperparams=None):
    """A mirror step on the simplex with the entropy."""
    del hyperparams
    return jax.nn.softmax(jnp.log(x) - step_size * gradient)


def path(solver, start, *hyperparams):
    """Parameters after the steps that are kept."""
    x, state, kept = start, solver.init_state(start, *hyperparams), {}
    update = jax.jit(solver.update)
    for step in range(1, STEPS + 1):
        x, state = update(x, state, *hyperparams)
        if step in KEPT:
            kept[step] = np.asarray(x).tolist()
    return kept


def main():
    """Writes all trajectories."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    plain, uniform = jnp.ones(8), jnp.ones(8) / 8
    settings = {"stepsize": 1 / SMOOTHNESS, "tol": 0.0}
    accelerated = {**settings, "acceleration": True}
    simplex = {"projection": projection_simplex, "acceleration": False}
    runs = {
        "gradient descent, accelerated": path(jaxopt.GradientDescent(loss, **accelerated), plain),
        "proximal gradient, accelerated, lasso": path(
            jaxopt.ProximalGradient(loss, prox_lasso, **accelerated), plain, ALPHA
        ),
        "projected gradient, simplex": path(
            jaxopt.ProjectedGradient(loss, **simplex, **settings), uniform
        ),
        "mirror descent, entropy": path(
            jaxopt.MirrorDescent(loss, exponentiated, stepsize=RATE, tol=0.0), uniform, None
        ),
    }
    record = {
        "versions": {name: importlib.metadata.version(name) for name in ("jaxopt",)},
        "settings": {"smoothness": SMOOTHNESS, "alpha": ALPHA, "rate": RATE},
        "runs": runs,
    }
    out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
