"""Inner steps per second of a PES meta-step: metaopt, its floor, Google's learned_optimization.

    python benchmarks/throughput.py                          # metaopt only
    python benchmarks/throughput.py --peer peer/bin/python   # both, in turn; about 40 minutes
    python benchmarks/throughput.py --profile                # where metaopt's time goes

`peer_learned_optimization.py` says how to make the peer's environment. Both sides train an MLP
64-32-10 on 8x8x1 images from memory with batches of 32 on CPU: one process each, the same XLA
flag, and while one measures the others wait. A meta-step is the PES estimate and an Adam step on
theta; `inner_steps` counts both antithetic arms, 2 * num_tasks * window. `compile_s` is the time
from nothing compiled to the end of the first meta-step.

The floor is metaopt's own program with `optax.sgd` or `optax.adam` in place of the learned rule.
The peer runs as in its tutorials (`default`), with its fastest settings (`tuned`: both arms in
one program, one program per window), and as its users would start it, without the XLA flag
(`unguarded`). `mlp` names the same kind of rule on both sides (a per-parameter MLP, hidden 32).
`celo2` stands beside the peer's Adafac MLP, its nearest relative and not the same function.

Results: `results/throughput.json` with configuration, versions and commit.
"""

import itertools
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import _measure
import tyro

HERE = Path(__file__).parent
# metaopt's optimizer, and the peer's that is timed beside it.
PAIRS = {"mlp": "mlp", "adafac_mlp": "adafac_mlp", "celo2": "adafac_mlp", "sgd": None, "adam": None}
VARIANTS = {
    "default": {"steps_per_jit": 10, "stack": False},
    "tuned": {"steps_per_jit": sys.maxsize, "stack": True},
    "unguarded": {"steps_per_jit": 10, "stack": False},
}


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        optimizers: names from `PAIRS`.
        num_tasks: tasks per estimate, one antithetic pair each.
        windows: inner steps per estimate.
        horizon: inner steps until reset, a multiple of every window.
        batch_size: examples per inner step.
        sigma: perturbation scale.
        seconds: measuring time per configuration and side.
        rounds: how many turns the sides take in that time, at least one meta-step each.
        variants: how the peer runs, names from `VARIANTS`.
        peer: the interpreter of the peer's environment; None: metaopt alone.
        profile: print the learned rule's time beside the inner gradient's, and nothing else.
        out: where the results go.
    """

    optimizers: tuple[str, ...] = ("mlp", "celo2", "sgd", "adam")
    num_tasks: tuple[int, ...] = (8, 32, 128)
    windows: tuple[int, ...] = (20, 50)
    horizon: int = 1000
    batch_size: int = 32
    sigma: float = 0.01
    seconds: float = 8.0
    rounds: int = 5
    variants: tuple[str, ...] = ("default", "tuned", "unguarded")
    peer: str | None = None
    profile: bool = False
    out: Path = HERE / "results" / "throughput.json"


def configurations(cfg: Config) -> list[dict]:
    """One settings dictionary per configuration of our side."""
    return [
        {
            "optimizer": optimizer,
            "num_tasks": num_tasks,
            "window": window,
            "horizon": cfg.horizon,
            "batch_size": cfg.batch_size,
            "sigma": cfg.sigma,
        }
        for num_tasks, window, optimizer in itertools.product(
            cfg.num_tasks, cfg.windows, cfg.optimizers
        )
    ]


def start_sides(cfg: Config) -> dict[str, _measure.Side]:
    """A waiting process for metaopt and for every variant of the peer."""
    sides = {"metaopt": _measure.Side([sys.executable, str(HERE / "metaopt_side.py")])}
    if cfg.peer is not None:
        command = [cfg.peer, str(HERE / "peer_learned_optimization.py"), "--serve"]
        for variant in cfg.variants:
            sides[variant] = _measure.Side(command, guard=variant != "unguarded")
    return sides


def measure(cfg: Config, sides: dict[str, _measure.Side], settings: dict, rows: dict) -> None:
    """Adds the rows of one configuration; a peer's configuration is measured once only."""
    wanted = {"metaopt": settings}
    partner = PAIRS[settings["optimizer"]]
    if partner is not None:
        for variant in cfg.variants if cfg.peer is not None else ():
            wanted[variant] = {**settings, **VARIANTS[variant], "optimizer": partner}
    wanted = {side: s for side, s in wanted.items() if row_key(side, s) not in rows}

    facts = {side: sides[side].ask(build=s) for side, s in wanted.items()}
    times = {side: {"ms": [], "cpu_ms": []} for side in wanted}
    for _, side in itertools.product(range(cfg.rounds), wanted):
        for name, values in sides[side].ask(run=cfg.seconds / cfg.rounds).items():
            times[side][name] += values
    # Above the number of cores, wall times say little: read the process times.
    load = {"load_average": round(os.getloadavg()[0], 2)}
    for side, s in wanted.items():
        variant = {"variant": side} if side != "metaopt" else {}
        rows[row_key(side, s)] = _measure.row({**variant, **facts[side], **load}, times[side])


def row_key(side: str, settings: dict) -> tuple:
    return side, settings["optimizer"], settings["num_tasks"], settings["window"]


def cells(r: dict, peers: dict) -> list[str]:
    """One row as text."""
    ratios = []
    for variant in VARIANTS:
        peer = peers.get((variant, PAIRS.get(r["optimizer"]), r["num_tasks"], r["window"]))
        if r["library"] != "metaopt" or peer is None:
            ratios.append("")
            continue
        wall, cpu = (peer[k] / r[k] for k in ("ms_per_meta_step_median", "cpu_ms_median"))
        ratios.append(f"{wall:.2f}, {cpu:.2f}")
    return [
        f"peer, {r['variant']}" if "variant" in r else "metaopt",
        r["optimizer"],
        str(r["num_tasks"]),
        str(r["window"]),
        f"{r['compile_s']:.1f}",
        f"{r['ms_per_meta_step_median']:.1f}",
        f"{r['ms_min']:.1f}",
        f"{r['cpu_ms_median']:.1f}",
        f"{r['inner_steps_per_s']:,}",
        f"{r['temp_bytes'] / 2**20:.2f}" if "temp_bytes" in r else "",
        *ratios,
    ]


def table(rows: list[dict]) -> str:
    """A markdown table; the last columns are the peer's medians over ours, wall and CPU."""
    peers = {row_key(r["variant"], r): r for r in rows if "variant" in r}
    head = "library|rule|tasks|window|compile s|ms per meta-step|min ms|CPU ms|inner steps/s"
    head += "|temp MiB|" + "|".join(f"{variant} / ours" for variant in VARIANTS)
    by_size = sorted(rows, key=lambda r: (r["num_tasks"], r["window"], r["library"] != "metaopt"))
    lines = [head.split("|"), ["---"] * len(head.split("|")), *(cells(r, peers) for r in by_size)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(cfg: Config, origin: dict, rows: list[dict]) -> None:
    """Writes configuration, provenance, versions and rows as JSON."""
    report = {
        "config": {k: v for k, v in asdict(cfg).items() if k not in ("peer", "out", "profile")},
        **origin,
        "versions": {r["library"]: r["versions"] for r in rows},
        "rows": [{k: v for k, v in r.items() if k != "versions"} for r in rows],
    }
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    cfg.out.write_text(json.dumps(report, indent=1) + "\n")


def print_profile(cfg: Config) -> None:
    """Prints the meta-step beside the learned rule alone and the inner gradient alone."""
    os.environ["XLA_FLAGS"] = _measure.XLA_GUARD
    import metaopt_side

    print("| rule | tasks | window | meta-step ms | rule alone ms | inner gradient alone ms |")
    print("|---|---|---|---|---|---|")
    for settings in configurations(cfg):
        r = metaopt_side.profile(settings, seconds=cfg.seconds / 4)
        print(
            f"| {r['optimizer']} | {r['num_tasks']} | {r['window']} | {r['meta_step_ms']:.2f} "
            f"| {r['rule_ms']:.2f} | {r['gradient_ms']:.2f} |",
            flush=True,
        )


def main(cfg: Config) -> None:
    """Measures every configuration, prints the table and writes the results."""
    if cfg.profile:
        print_profile(cfg)
        return
    origin = _measure.provenance()
    sides = start_sides(cfg)
    rows: dict[tuple, dict] = {}
    try:
        for settings in configurations(cfg):
            measure(cfg, sides, settings, rows)
            # After every configuration, so that an interrupted run is not lost.
            write(cfg, origin, list(rows.values()))
            print("{optimizer}, {num_tasks} tasks, window {window}".format(**settings), flush=True)
    finally:
        for side in sides.values():
            side.close()
    print(table(list(rows.values())))


if __name__ == "__main__":
    main(tyro.cli(Config))
