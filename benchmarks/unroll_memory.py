"""Memory and time of meta-gradients: plain reverse over reverse, and what `metaopt.unroll` offers.

    python benchmarks/unroll_memory.py            # about 10 minutes on two cores
    python benchmarks/unroll_memory.py --tiny     # seconds

An inner network is trained for T steps by Adam; theta is its initial parameters and one learning
rate per parameter. The meta-gradient of the mean of the training losses is compiled once for each
pair of `remat` and `gradient`; the first pair is plain reverse mode over reverse mode, nothing
kept back. Memory is XLA's own account of temporary buffers. The pairs take their turns, one
meta-gradient each, so that the noise of a shared machine falls on all of them alike; times are
medians, and process times where the machine is busier than it has cores.

Results: `results/unroll_memory.json` with configuration and versions, and a figure beside it.
"""

import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import unroll  # noqa: E402
from metaopt.core import StepInfo, System  # noqa: E402

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Case:
    """One inner problem: `depth` layers or blocks of `width`, T inner steps."""

    kind: str
    width: int
    depth: int
    batch_size: int
    num_steps: int
    seq: int = 0

    @property
    def name(self) -> str:
        """The case in words."""
        seq = f", {self.seq} tokens" if self.seq else ""
        return (
            f"{self.kind} {self.depth} x {self.width}, batch {self.batch_size}{seq}, "
            f"T = {self.num_steps}"
        )


CASES = (
    Case("mlp", 32, 2, 32, 20),
    Case("shallow", 100, 2, 512, 20),
    Case("mlp", 128, 6, 64, 20),
    Case("mlp", 128, 6, 64, 100),
    Case("mlp", 128, 6, 1024, 20),
    Case("transformer", 32, 2, 4, 20, seq=16),
    Case("transformer", 64, 2, 8, 20, seq=64),
    Case("transformer", 128, 2, 8, 20, seq=64),
)
PAIRS = (
    ("none", "reverse"),
    ("none", "mixed"),
    ("step", "mixed"),
    ("gradients", "mixed"),
    ("auto", "auto"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        cases: indices into `CASES`.
        repeats: turns that every pair takes.
        out: where the results go; the figure goes beside it.
    """

    cases: tuple[int, ...] = tuple(range(len(CASES)))
    repeats: int = 5
    out: Path = HERE / "results" / "unroll_memory.json"

    @classmethod
    def tiny(cls, folder: Path) -> "Config":
        """The smallest case, two turns."""
        return cls((0,), 2, folder / "tiny.json")


def normal(key, shape):
    return jax.random.normal(key, shape) / np.sqrt(shape[0])


def mlp(case: Case):
    """A GELU network that learns random numbers; "shallow" has the sizes of a digits classifier."""
    widths = [case.width] * (case.depth + 1)
    if case.kind == "shallow":
        widths = [784, case.width, 10]
    shapes = list(zip(widths, widths[1:], strict=False))

    def init(key):
        keys = jax.random.split(key, case.depth)
        return [
            {"w": 1.4 * normal(k, shape), "b": jnp.zeros(shape[1])}
            for k, shape in zip(keys, shapes, strict=True)
        ]

    def loss(params, batch):
        x, y = batch
        for index, layer in enumerate(params):
            x = x @ layer["w"] + layer["b"]
            x = jax.nn.gelu(x) if index < case.depth - 1 else x
        return jnp.mean((x - y) ** 2)

    def pool(key):
        keys = jax.random.split(key)
        ends = (widths[0], widths[-1])
        return tuple(
            jax.random.normal(k, (2 * case.batch_size, width))
            for k, width in zip(keys, ends, strict=True)
        )

    return init, loss, pool


def transformer(case: Case, heads: int = 4, vocab: int = 256):
    """Causal pre-norm blocks, next-token cross-entropy."""
    width, seq = case.width, case.seq
    mask = np.tril(np.ones((seq, seq), bool))
    shapes = {"qkv": (width, 3 * width), "o": (width, width), "up": (width, 4 * width)}
    shapes["down"] = (4 * width, width)

    def init(key):
        key_in, key_out, *keys = jax.random.split(key, 2 + case.depth)
        blocks = [
            {n: normal(jax.random.fold_in(k, i), s) for i, (n, s) in enumerate(shapes.items())}
            | {"norm1": jnp.ones(width), "norm2": jnp.ones(width)}
            for k in keys
        ]
        embed = 4 * normal(key_in, (vocab, width))
        return {"embed": embed, "out": normal(key_out, (width, vocab)), "blocks": blocks}

    def norm(x, gain):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain

    def block(x, p):
        h = (norm(x, p["norm1"]) @ p["qkv"]).reshape(*x.shape[:2], heads, 3 * width // heads)
        q, k, v = jnp.split(h, 3, -1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads)
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), -1)
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["o"]
        return x + jax.nn.gelu(norm(x, p["norm2"]) @ p["up"]) @ p["down"]

    def loss(params, batch):
        (tokens,) = batch
        x = params["embed"][tokens[:, :-1]]
        for p in params["blocks"]:
            x = block(x, p)
        logits = x @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def pool(key):
        return (jax.random.randint(key, (4 * case.batch_size, seq + 1), 0, vocab),)

    return init, loss, pool


def build(case: Case):
    """The inner training as a system, theta, and the pool."""
    init_params, loss, make_pool = {"transformer": transformer}.get(case.kind, mlp)(case)
    scale_by_adam = optax.scale_by_adam(eps_root=1e-12)

    def init(theta, data, key, *, num_steps=None):
        return theta["init"], scale_by_adam.init(theta["init"])

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        params, opt_state = state
        rows = jax.random.randint(key, (case.batch_size,), 0, len(data[0]))
        value, grads = value_and_grad(loss)(params, [x[rows] for x in data])
        updates, opt_state = scale_by_adam.update(grads, opt_state)
        move = lambda p, u, r: p - jnp.exp(r) * u  # noqa: E731
        params = jax.tree.map(move, params, updates, theta["log_rates"])
        return (params, opt_state), StepInfo(value, jnp.array(False))

    params = init_params(jax.random.key(0))
    rates = jax.tree.map(lambda p: jnp.full_like(p, np.log(1e-3)), params)
    return System(init, step), {"init": params, "log_rates": rates}, make_pool(jax.random.key(1))


def meta_gradient(system: System, case: Case, remat: str, gradient: str):
    run = unroll.unroll(system, num_steps=case.num_steps, remat=remat, gradient=gradient)

    def loss(theta, data, key):
        key_init, key_run = jax.random.split(key)
        return run(theta, system.init(theta, data, key_init), data, key_run)[1].loss.mean()

    return jax.grad(loss)


def measure(case: Case, repeats: int, pairs=PAIRS) -> list[dict]:
    """One row per pair of settings; ratios are those to the first pair."""
    system, theta, data = build(case)
    args = (theta, data, jax.random.key(2))
    compiled, programs, rows, reference = [], [], [], None
    for remat, gradient in pairs:
        start = time.perf_counter()
        lowered = jax.jit(meta_gradient(system, case, remat, gradient)).lower(*args)
        function = lowered.compile()
        compile_s = time.perf_counter() - start
        programs.append(lowered.as_text())
        grads = jax.tree.leaves(function(*args))
        flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in grads])
        reference = flat if reference is None else reference
        compiled.append(function)
        rows.append(
            {
                "case": case.name,
                "remat": remat,
                "gradient": gradient,
                # Then any other ratio than 1 is noise.
                "same_program": programs[-1] == programs[0],
                "temp_mib": function.memory_analysis().temp_size_in_bytes / 2**20,
                "compile_s": compile_s,
                "gradient_error": float(np.abs(flat - reference).max() / np.abs(reference).max()),
            }
        )
    times = take_turns(compiled, args, repeats)
    for row, (wall, cpu) in zip(rows, times, strict=True):
        row |= {"seconds": wall, "cpu_seconds": cpu}
        row |= {f"{k}_ratio": rows[0][k] / row[k] for k in ("temp_mib", "seconds", "cpu_seconds")}
        print(
            f"{row['case']:48s} {row['remat']:9s} {row['gradient']:8s} {row['temp_mib']:8.2f} MiB "
            f"(1/{row['temp_mib_ratio']:5.2f}) {1e3 * cpu:8.1f} ms cpu "
            f"(1/{row['cpu_seconds_ratio']:4.2f}) {1e3 * wall:8.1f} ms wall "
            f"(1/{row['seconds_ratio']:4.2f}) compiled in {row['compile_s']:4.1f} s, "
            f"error {row['gradient_error']:.0e}{', as plain' if row['same_program'] else ''}",
            flush=True,
        )
    return rows


def take_turns(functions, args, repeats: int) -> list[tuple[float, float]]:
    """Median wall and process seconds of a call of each function; a turn lasts 0.1 s or a call."""
    times, calls = [[] for _ in functions], [1 for _ in functions]
    for turn in range(repeats + 1):
        for index, function in enumerate(functions):
            start = time.perf_counter(), time.process_time()
            for _ in range(calls[index]):
                jax.block_until_ready(function(*args))
            wall = (time.perf_counter() - start[0]) / calls[index]
            cpu = (time.process_time() - start[1]) / calls[index]
            if turn == 0:
                calls[index] = max(1, int(0.1 / cpu))
            else:
                times[index].append((wall, cpu))
    return [
        (statistics.median(t[0] for t in ts), statistics.median(t[1] for t in ts)) for ts in times
    ]


def figure(rows: list[dict], path: Path) -> None:
    """Memory and process time of every pair, one group of bars per case."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(r["case"] for r in rows))
    fig = Figure(figsize=(11, 0.7 * len(cases) + 1.5), layout="constrained")
    height = 0.8 / len(PAIRS)
    panels = zip(
        fig.subplots(1, 2, sharey=True),
        ("temp_mib", "cpu_seconds"),
        ("temporary memory [MiB]", "process time [s]"),
        strict=True,
    )
    for axes, key, label in panels:
        for index, (remat, gradient) in enumerate(PAIRS):
            values = [r[key] for r in rows if (r["remat"], r["gradient"]) == (remat, gradient)]
            places = np.arange(len(cases)) + index * height
            name = "auto" if remat == "auto" else f"remat {remat}, {gradient}"
            axes.barh(places, values, height, label=name)
        axes.set(xscale="log", xlabel=label, yticks=np.arange(len(cases)) + 0.4, yticklabels=cases)
        axes.invert_yaxis() if axes.get_subplotspec().is_first_col() else None
    axes.legend(fontsize="small")
    fig.savefig(path, dpi=120)


def main(cfg: Config) -> dict:
    rows = [row for index in cfg.cases for row in measure(CASES[index], cfg.repeats)]
    record = {
        "config": {"cases": [CASES[i].name for i in cfg.cases], "repeats": cfg.repeats},
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "rows": rows,
    }
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    cfg.out.write_text(json.dumps(record, indent=1) + "\n")
    figure(rows, cfg.out.with_suffix(".png"))
    return record


if __name__ == "__main__":
    if sys.argv[1:] == ["--tiny"]:
        main(Config.tiny(Path(tempfile.mkdtemp())))
    else:
        main(tyro.cli(Config))
