"""Aggregations of gradients by the torchjd package, in float64: what ours are held to.

    python benchmarks/peer_torch_aggregators.py --out tests/aggregators/golden.json

runs in an environment of its own (torchjd, cvxpy, clarabel, ecos, quadprog, qpsolvers) and writes
what becomes of the matrices of `jacobians`, which are made of sines, so that any language repeats
them. With `--arrays in.npz --out out.json` it takes other matrices, for `aggregators.py`. What is
random is not: rows of PCGrad meet the others in order, draws of GradDrop are those of `draws`.
"""

import argparse
import importlib.metadata
import json
import re
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torchjd import aggregation

SHAPES = ((2, 5), (3, 10), (5, 20), (8, 6))
PACKAGES = ("torch", "torchjd", "cvxpy", "clarabel", "ecos", "quadprog", "qpsolvers")
# Of the table in the documentation of torchjd, and two that need little work by hand.
EXAMPLES = {
    "conflict": [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]],
    "agreement": [[1.0, 2.0, 0.0], [2.0, 1.0, 1.0]],
}


def jacobians() -> dict[str, np.ndarray]:
    """Matrices of sines; the second row is ten times as long."""
    found = {name: np.array(rows) for name, rows in EXAMPLES.items()}
    for m, n in SHAPES:
        matrix = np.sin(np.arange(1, m * n + 1, dtype=np.float64) ** 2).reshape(m, n)
        matrix[1] *= 10
        found[f"{m}x{n}"] = matrix
    return found


def draws(n: int) -> np.ndarray:
    """Numbers in [0, 1] in place of uniform draws."""
    return np.abs(np.sin(np.arange(1, n + 1, dtype=np.float64)))


def aggregators(m: int) -> dict[str, aggregation.Aggregator]:
    """Everything that has a counterpart here."""
    tilted = torch.arange(1, m + 1, dtype=torch.float64) / m
    return {
        "mean": aggregation.Mean(),
        "upgrad": aggregation.UPGrad(),
        "upgrad_preference": aggregation.UPGrad(pref_vector=tilted),
        "dual_proj": aggregation.DualProj(),
        "mgda": aggregation.MGDA(),
        "pcgrad": aggregation.PCGrad(),
        "cagrad": aggregation.CAGrad(c=0.5),
        "cagrad_wide": aggregation.CAGrad(c=2.0),
        "imtl_g": aggregation.IMTLG(),
        "nash_mtl": aggregation.NashMTL(n_tasks=m, max_norm=0.0, optim_niter=100),
        "nash_mtl_clipped": aggregation.NashMTL(n_tasks=m, max_norm=1.0, optim_niter=100),
        "aligned_mtl": aggregation.AlignedMTL(),
        "aligned_mtl_median": aggregation.AlignedMTL(scale_mode="median"),
        "aligned_mtl_rmse": aggregation.AlignedMTL(scale_mode="rmse"),
        "graddrop": aggregation.GradDrop(),
        "graddrop_leak": aggregation.GradDrop(leak=tilted / 2),
    }


def results(matrix: np.ndarray) -> dict[str, list[float]]:
    """The vector of each aggregator; those that fail are left out."""
    m, n = matrix.shape
    uniform = torch.tensor(draws(n))
    found = {}
    with (
        mock.patch("torch.randperm", torch.arange),
        mock.patch("torch.rand", return_value=uniform),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name, aggregator in aggregators(m).items():
            try:
                vector = aggregator(torch.tensor(matrix)).numpy()
            except Exception as error:
                print(f"{name} of {m} x {n}: {error!r}")
                continue
            if np.isfinite(vector).all():
                found[name] = vector.tolist()
    return found


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--arrays")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.arrays is None:
        made = {
            "command": "python benchmarks/peer_torch_aggregators.py --out FILE",
            "versions": versions(),
            "results": {name: results(matrix) for name, matrix in jacobians().items()},
        }
        # One line for every vector.
        text = re.sub(r"\s+(?=[-0-9\]])(?=[^\[]*\])", " ", json.dumps(made, indent=1))
        Path(options.out).write_text(text + "\n")
        return
    with np.load(options.arrays) as arrays:
        found = {name: results(arrays[name]) for name in arrays.files}
    Path(options.out).write_text(json.dumps({"versions": versions(), "results": found}))


if __name__ == "__main__":
    main()
