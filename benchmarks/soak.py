"""A long run at small size, watched: does memory grow, does a step slow down?

    python benchmarks/soak.py --minutes 10

One process meta-trains until the time is over, with probes, metrics, checkpoints and a stream, and
notes at every probe the resident memory of the host, the arrays alive in jax, the blocks of memory
that Python holds, the open files, the threads and the time of a step. Drifts are slopes of straight
lines by least squares over the second half, when caches are warm: memory per 1,000 outer steps, and
the step time as a share of its median per hour. `first` and `last` are medians over a tenth of the
run at either end.

Expected: no trend in live arrays, files and threads; step times as steady as the machine is;
resident memory flat without saves. Each save leaves 300 to 450 blocks, 50 KiB, behind: TensorStore
(0.1.78 to 0.1.86) frees none of the strings of the JSON that it hands to Python, and Orbax asks it
for such.

Results: `results/soak.json`.
"""

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()

import os  # noqa: E402
import pathlib  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402

import _measure  # noqa: E402
import _runs  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import data, train  # noqa: E402


@dataclass(frozen=True)
class Config:
    """How long, and of what.

    Attributes:
        minutes: of training.
        problem: "digits" or "quadratic".
        num_tasks: tasks of an estimate.
        probe_every: outer steps between notes.
        checkpoint_every: outer steps between checkpoints.
        out: where the results go.
    """

    minutes: float = 10.0
    problem: str = "digits"
    num_tasks: int = 8
    probe_every: int = 20
    checkpoint_every: int = 100
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "soak.json"


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure() -> dict:
    """What is noted at a probe."""
    return {
        "seconds": time.perf_counter(),
        "rss_mib": resident_mib(),
        "live_arrays": len(jax.live_arrays()),
        "python_blocks": sys.getallocatedblocks(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def summarise(notes: list[dict]) -> dict:
    """Ends and drifts of what was noted."""
    notes = notes[1:]  # The first interval compiles.
    step, seconds = (np.array([n[name] for n in notes], float) for name in ("step", "seconds"))
    columns = {name: np.array([n[name] for n in notes[1:]], float) for name in notes[0]}
    columns["ms_per_step"] = 1e3 * np.diff(seconds) / np.diff(step)
    count = len(columns["step"])
    if count < 4:
        raise RuntimeError(f"only {count} intervals were measured; give it more minutes.")
    tenth, half = max(1, count // 10), count // 2
    rows = {}
    for name in [*(n for n in notes[0] if n not in ("step", "seconds")), "ms_per_step"]:
        values = columns[name]
        first, last = np.median(values[:tenth]), np.median(values[-tenth:])
        rows[name] = {"first": first, "last": last, "largest": values.max()}
        x = columns["step"][half:] / 1000
        if name == "ms_per_step":
            x, values = (columns["seconds"] - seconds[0])[half:] / 3600, values / np.median(values)
        drift = "share_per_hour" if name == "ms_per_step" else "per_1000_steps"
        rows[name][drift] = np.polyfit(x, values[half:], 1)[0]
    return {k: {n: round(float(x), 4) for n, x in row.items()} for k, row in rows.items()}


def main(config: Config) -> dict:
    """Trains, watches and writes the results."""
    provenance, notes = _measure.provenance(), []
    settings = _runs.DEFAULTS | {"problem": config.problem, "num_tasks": config.num_tasks}
    estimator, theta, probe, pool = _runs.make(settings)
    end = time.perf_counter() + 60 * config.minutes

    def watch(step, metrics):
        notes.append({"step": step, **measure()})
        if time.perf_counter() > end:
            signal.raise_signal(signal.SIGTERM)  # As a scheduler would: everything is saved.

    with tempfile.TemporaryDirectory() as place:
        result = train.meta_train(
            {"task": estimator},
            theta,
            {"task": data.Stream(lambda step: pool, 10, (8, 8, 1))},
            jax.random.key(1),
            outer_opt=optax.adam(1e-3),
            num_steps=10**9,
            probes={"task": probe},
            probe_every=config.probe_every,
            directory=pathlib.Path(place) / "run",
            checkpoint_every=config.checkpoint_every,
            settings=settings,
            on_report=watch,
        )
        status = train.run_status(pathlib.Path(place) / "run")
    results = {
        **provenance,
        "config": asdict(config) | {"out": config.out.name},
        "steps": int(result.state.step),
        "inner_steps_per_outer_step": 2
        * config.num_tasks
        * (20 if config.problem == "digits" else 5),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "saved": status.last_checkpoint == int(result.state.step),
        "skipped": status.skipped,
        **summarise(notes),
    }
    os.makedirs(config.out.parent, exist_ok=True)
    train.write_json(config.out, results)
    print(results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
