"""Jacobians of `golden.json`, and our aggregators in the settings of its vectors."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from metaopt import aggregators
from metaopt.aggregators import _graddrop, _pcgrad

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())["results"]
EXAMPLES = {
    "conflict": [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]],
    "agreement": [[1.0, 2.0, 0.0], [2.0, 1.0, 1.0]],
}


def jacobian(case: str) -> np.ndarray:
    """The matrix that the vectors of a case belong to."""
    if case in EXAMPLES:
        return np.array(EXAMPLES[case])
    m, n = map(int, case.split("x"))
    matrix = np.sin(np.arange(1, m * n + 1, dtype=np.float64) ** 2).reshape(m, n)
    matrix[1] *= 10
    return matrix


def in_turn() -> aggregators.Aggregator:
    """PCGrad whose rows meet the others in order."""

    def weights(gramian, key=None):
        size = len(gramian)
        return _pcgrad.in_orders(gramian, jnp.tile(jnp.arange(size)[None], (size, 1)))

    return aggregators.by_gramian(weights)


def with_draws(leak=None) -> aggregators.Aggregator:
    """GradDrop of a matrix, whose draws are sines."""

    def aggregate(jacobian, key=None):
        draws = jnp.abs(jnp.sin(jnp.arange(1, jacobian.shape[1] + 1, dtype=jacobian.dtype)))
        return _graddrop.drop(jacobian, draws, lambda p: p, leak)

    return aggregators.Aggregator(aggregate, None)


def ours(m: int) -> dict[str, aggregators.Aggregator]:
    """By the names in the file, for m objectives."""
    tilted = jnp.arange(1, m + 1) / m
    return {
        "mean": aggregators.mean(),
        "upgrad": aggregators.upgrad(),
        "upgrad_preference": aggregators.upgrad(preference=tilted),
        "dual_proj": aggregators.dual_proj(),
        "mgda": aggregators.mgda(),
        "pcgrad": in_turn(),
        "cagrad": aggregators.cagrad(c=0.5),
        "cagrad_wide": aggregators.cagrad(c=2.0),
        "imtl_g": aggregators.imtl_g(),
        "nash_mtl": aggregators.nash_mtl(max_norm=np.inf),
        "nash_mtl_clipped": aggregators.nash_mtl(max_norm=1.0),
        "aligned_mtl": aggregators.aligned_mtl(),
        "aligned_mtl_median": aggregators.aligned_mtl(scale="median"),
        "aligned_mtl_rmse": aggregators.aligned_mtl(scale="rmse"),
        "graddrop": with_draws(),
        "graddrop_leak": with_draws(tilted / 2),
    }


def error(case: str, vectors: dict) -> dict[str, float]:
    """The largest difference of each vector over the largest entry of the published one."""
    found = {}
    for name, vector in vectors.items():
        expected = np.array(GOLDEN[case][name])
        found[name] = float(np.abs(np.asarray(vector) - expected).max() / np.abs(expected).max())
    return found
