"""Aggregators beside those of torchjd, on the same random Jacobians.

    python benchmarks/aggregators.py --peer peer/bin/python

Twenty Jacobians of normal entries for each of four shapes, one row ten times as long, in float64
and in float32; what is random in a rule is fixed on both sides. The table has the largest
difference over the largest entry of the peer's vector, or over that of the Jacobian where the peer
has a zero vector. CAGrad and Nash-MTL of the peer stop near their optimum or before it: `no worse`
counts where our objective (the least product with a gradient; the product of all of them, for a
direction of length 1) is at least the peer's. The peer's environment is that of
`peer_torch_aggregators.py`.

Results: `results/aggregators.json` with versions and commit.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import _measure
import numpy as np
import tyro

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.aggregators import golden  # noqa: E402

HERE = Path(__file__).parent
SHAPES = ((2, 5), (3, 10), (5, 20), (8, 6))


@dataclass(frozen=True)
class Config:
    """What to compare with.

    Attributes:
        peer: the interpreter of the peer's environment.
        num: Jacobians of each shape.
        out: where the results go.
    """

    peer: str
    num: int = 20
    out: Path = HERE / "results" / "aggregators.json"


def jacobians(num: int) -> dict[tuple[int, int], np.ndarray]:
    """By shape, the Jacobians stacked."""
    rng = np.random.default_rng(0)
    found = {}
    for m, n in SHAPES:
        matrices = rng.normal(size=(num, m, n))
        matrices[:, 1] *= 10
        found[m, n] = matrices
    return found


def ours(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """By name, one vector per Jacobian."""
    rules = golden.ours(matrices.shape[1])

    def all_of(matrix):
        return {name: rule.aggregate(matrix) for name, rule in rules.items()}

    return {k: np.asarray(v) for k, v in jax.jit(jax.vmap(all_of))(jnp.asarray(matrices)).items()}


def peer(cfg: Config, stacks: dict) -> dict:
    """What the peer makes of the same Jacobians, and its versions."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = {f"{m}x{n}-{i}": x[i] for (m, n), x in stacks.items() for i in range(cfg.num)}
        np.savez(f"{folder}/in.npz", allow_pickle=False, **arrays)
        script = str(HERE / "peer_torch_aggregators.py")
        files = ["--arrays", f"{folder}/in.npz", "--out", f"{folder}/out.json"]
        subprocess.run([cfg.peer, script, *files], check=True)
        return json.loads(Path(folder, "out.json").read_text())


def objective(name: str, matrix: np.ndarray, vector: np.ndarray) -> float:
    """What CAGrad and Nash-MTL maximise."""
    products = matrix @ vector
    if name.startswith("cagrad"):
        return float(products.min())
    if products.min() <= 0:
        return -np.inf
    return float(np.log(products / np.linalg.norm(vector)).sum())


def compare(shape: tuple, matrices: np.ndarray, mine: dict, low: dict, theirs: dict) -> list[dict]:
    """One row per aggregator."""
    rows = []
    for name in mine:
        vectors = [theirs[f"{shape[0]}x{shape[1]}-{i}"].get(name) for i in range(len(matrices))]
        found = [(i, np.array(x)) for i, x in enumerate(vectors) if x is not None]
        row = {"aggregator": name, "m": shape[0], "n": shape[1], "compared": len(found)}
        for precision, ours in (("float64", mine), ("float32", low)):
            errors = [
                np.abs(ours[name][i] - x).max() / (np.abs(x).max() or np.abs(matrices[i]).max())
                for i, x in found
            ]
            row |= {precision: float(max(errors)), f"{precision}_median": float(np.median(errors))}
        if name.startswith(("cagrad", "nash")):
            row["no_worse"] = sum(
                objective(name, matrices[i], mine[name][i])
                >= objective(name, matrices[i], x) - 1e-6
                for i, x in found
            )
        rows.append(row)
    return rows


def main(cfg: Config) -> dict:
    """Compares, prints and writes."""
    origin = _measure.provenance()
    stacks = jacobians(cfg.num)
    theirs = peer(cfg, stacks)
    rows = []
    for shape, matrices in stacks.items():
        with jax.enable_x64(True):
            mine = ours(matrices)
        low = ours(matrices.astype(np.float32))
        rows += compare(shape, matrices, mine, low, theirs["results"])
    for row in rows:
        print(
            f"{row['aggregator']:20s} {row['m']:2d} x {row['n']:2d}  {row['float64']:.1e} "
            f"(median {row['float64_median']:.1e})  float32 {row['float32']:.1e} "
            f"(median {row['float32_median']:.1e})  of {row['compared']}"
            + (f"  no worse {row['no_worse']}" if "no_worse" in row else "")
        )
    results = {"num": cfg.num, "versions": theirs["versions"], **origin, "rows": rows}
    cfg.out.parent.mkdir(exist_ok=True)
    cfg.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
