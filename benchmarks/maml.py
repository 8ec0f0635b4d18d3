"""Milliseconds of a second-order MAML meta-step: metaopt, hand-written JAX, the PyTorch peers.

    python benchmarks/maml.py                           # JAX only
    python benchmarks/maml.py --peer peer/bin/python    # all; about ten minutes on two cores

Sinusoids: a network 1-40-40-1, 25 tasks of 10 points. Images: four 3 x 3 convolutions of 64
channels with 2 x 2 pooling, 28 x 28 inputs, 4 tasks, 5-way 1-shot with 15 queries a class. Five
inner steps. All libraries start from the same weights and arrays, one process each on one thread;
while one measures the others wait. `ratio` is the median process time over metaopt's.

Results: `results/maml.json` with configuration, versions and commit.
"""

import itertools
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import _measure
import numpy as np
import tyro

HERE = Path(__file__).parent
JAX = ("metaopt", "jax hand")


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        problems: "sinusoids" and "images".
        peers: libraries of the peer's environment; "learn2learn" needs `learn2learn`.
        obvious: whether to measure vmapped XLA convolutions too, which takes minutes to compile.
        seconds: measuring time per problem and library.
        rounds: how many turns the libraries take in that time, at least one meta-step each.
        peer: the interpreter of the peer's environment; None: JAX alone.
        learn2learn: folder of the unpacked source of learn2learn; None: not measured.
        out: where the results go.
    """

    problems: tuple[str, ...] = ("sinusoids", "images")
    peers: tuple[str, ...] = ("torchopt", "higher", "torch.func")
    obvious: bool = False
    seconds: float = 10.0
    rounds: int = 5
    peer: str | None = None
    learn2learn: str | None = None
    out: Path = HERE / "results" / "maml.json"


def sinusoids(rng) -> dict[str, np.ndarray]:
    """25 tasks and a network, as in the sinusoid experiment of MAML."""
    amplitude, phase = rng.uniform(0.1, 5, (25, 1, 1)), rng.uniform(0, np.pi, (25, 1, 1))
    arrays = {}
    for x, y in (("xs", "ys"), ("xq", "yq")):
        arrays[x] = rng.uniform(-5, 5, (25, 10, 1))
        arrays[y] = amplitude * np.sin(arrays[x] - phase)
    for index, (rows, columns) in enumerate(((1, 40), (40, 40), (40, 1))):
        arrays[f"w{index}"] = rng.normal(size=(rows, columns)) * np.sqrt(2 / rows)
        arrays[f"b{index}"] = np.zeros(columns)
    return {name: np.asarray(x, np.float32) for name, x in arrays.items()}


def images(rng) -> dict[str, np.ndarray]:
    """Four 5-way tasks of random images, and a network of four convolutions."""
    arrays = {}
    for x, y, shots in (("xs", "ys", 1), ("xq", "yq", 15)):
        arrays[x] = rng.normal(size=(4, 5 * shots, 28, 28, 1)).astype(np.float32)
        arrays[y] = np.tile(np.arange(5, dtype=np.int32).repeat(shots), (4, 1))
    channels = 1
    for index in range(4):
        scale = np.sqrt(2 / (9 * channels))
        arrays[f"w{index}"] = (rng.normal(size=(3, 3, channels, 64)) * scale).astype(np.float32)
        arrays[f"b{index}"] = np.zeros(64, np.float32)
        channels = 64
    arrays["w4"] = (rng.normal(size=(64, 5)) / 8).astype(np.float32)
    arrays["b4"] = np.zeros(5, np.float32)
    return arrays


PROBLEMS = {"sinusoids": (sinusoids, 0.01), "images": (images, 0.01)}


def start_sides(cfg: Config, problem: str) -> dict[str, _measure.Side]:
    """A waiting process per library."""
    jax_side = [sys.executable, str(HERE / "maml_side.py")]
    names = [*JAX, *(["jax obvious"] if cfg.obvious and problem == "images" else [])]
    sides = {name: _measure.Side(jax_side) for name in names}
    if cfg.peer is not None:
        command = [cfg.peer, str(HERE / "peer_torch_maml.py")]
        if cfg.learn2learn is not None:
            command += ["--learn2learn", cfg.learn2learn]
        chosen = [*cfg.peers, *(["learn2learn"] if cfg.learn2learn is not None else [])]
        sides |= {name: _measure.Side(command) for name in chosen}
    return sides


def measure(cfg: Config, problem: str) -> list[dict]:
    """One row per library; they take turns."""
    make, inner_lr = PROBLEMS[problem]
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/arrays.npz"
        np.savez(file, **make(np.random.default_rng(0)))
        settings = {
            "problem": problem,
            "file": file,
            "inner_lr": inner_lr,
            "steps": 5,
            "threads": 1,
        }
        sides = start_sides(cfg, problem)
        facts = {
            name: side.ask(build={**settings, "library": name}) for name, side in sides.items()
        }
        times = {name: {"ms": [], "cpu_ms": []} for name in sides}
        for _, name in itertools.product(range(cfg.rounds), sides):
            for kind, values in sides[name].ask(run=cfg.seconds / cfg.rounds).items():
                times[name][kind] += values
        for side in sides.values():
            side.close()
    rows = [_measure.row(facts[name], times[name]) for name in sides]
    ours = rows[0]["cpu_ms_median"]
    return [{**row, "ratio": round(row["cpu_ms_median"] / ours, 3)} for row in rows]


def main(cfg: Config) -> dict:
    """Measures, prints and writes."""
    # One core for everybody, inherited by the sides: process times then mean the same work.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    origin = _measure.provenance()
    rows = [row for problem in cfg.problems for row in measure(cfg, problem)]
    for row in rows:
        print(
            f"{row['problem']:10s} {row['library']:12s} {row['cpu_ms_median']:10.2f} ms process, "
            f"{row['ms_min']:10.2f} ms wall at best, {row['ratio']:7.2f}x, "
            f"first loss {row['first_loss']:.6f}"
        )
    config = {k: v for k, v in asdict(cfg).items() if k not in ("peer", "learn2learn", "out")}
    results = {"config": config, **origin, "rows": rows}
    cfg.out.parent.mkdir(exist_ok=True)
    cfg.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
