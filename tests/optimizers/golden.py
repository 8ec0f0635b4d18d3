"""Trajectories of published implementations, written by `benchmarks/peer_torch_update_rules.py`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

RECORD = json.loads((Path(__file__).parent / "golden.json").read_text())
RULES = RECORD["rules"]
STEPS = 50
SHAPES = {"w": (4, 3), "b": (3,)}


def start(shapes=SHAPES):
    """Parameters before the first step, in the precision in force."""
    return {
        name: jnp.cos(1.0 + jnp.arange(np.prod(shape), dtype=float).reshape(shape))
        for name, shape in shapes.items()
    }


def start_of(name: str):
    """Those of a published trajectory, which may have other arrays."""
    return start({array: np.shape(kept) for array, kept in RULES[name]["params"]["1"].items()})


def gradients(params, step):
    """Those of step 0, 1, ...: `sin((step + 1) (index + 1)) + params / 2`, for each array."""

    def one(p):
        index = 1.0 + jnp.arange(p.size, dtype=p.dtype).reshape(p.shape)
        return jnp.sin((step + 1) * index) + 0.5 * p

    return jax.tree.map(one, params)


def trajectory(opt, *, extra=lambda params, step: {}, params=None):
    """Parameters after each step, with a step axis first; `extra` gives extra arguments."""
    params = start() if params is None else params

    def one(carry, step):
        params, state = carry
        updates, state = opt.update(gradients(params, step), state, params, **extra(params, step))
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run(params):
        return jax.lax.scan(one, (params, opt.init(params)), jnp.arange(STEPS))[1]

    return run(params)


def difference(name: str, params) -> float:
    """Largest difference to the published parameters over all steps kept.

    `params` as above; arrays that they lack are not compared.
    """
    worst = 0.0
    for step, kept in RULES[name]["params"].items():
        for array, path in params.items():
            ours = np.asarray(path[int(step) - 1], np.float64)
            worst = max(worst, float(np.abs(ours - np.asarray(kept[array])).max()))
    return worst
