"""One run on 1, 2, 4 and 8 forced CPU devices, and on two processes of 4: same curve, what speed.

    python benchmarks/scaling.py        # about ten minutes on two cores

PES on the training of an MLP 64-32-10 on digits by Celo2, its tasks spread over all devices.
`difference` is the largest difference between the meta-losses and those of one device, relative to
the largest meta-loss, in float32 and in float64. Forced devices share the cores of one machine, so
that more devices than cores cannot be faster: `ideal` is one device's speed times
min(devices, cores), an upper bound as XLA may use several cores for one device as well, and
`of_ideal` the share that was reached. The speed is that of the whole loop, the last probe and save
included; what else the machine does lowers it.

Expected: no difference at all, and speeds that do not fall much as devices are added.

Results: `results/scaling.json`.
"""

import json
import os
import pathlib
import tempfile
from dataclasses import asdict, dataclass

import _measure
import _runs
import numpy as np
import tyro

from metaopt import train


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        devices: numbers of forced devices of one process.
        num_tasks: tasks in all, a multiple of each of these numbers.
        num_steps: outer steps.
        out: where the results go.
    """

    devices: tuple[int, ...] = (1, 2, 4, 8)
    num_tasks: int = 16
    num_steps: int = 20
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "scaling.json"


def curve(folder: pathlib.Path) -> np.ndarray:
    """The meta-losses of a run."""
    return np.array([line["loss"] for line in train.read_metrics(folder) if "loss" in line])


def run(config: Config, place: pathlib.Path, processes: int, devices: int, *, x64: bool):
    """The meta-losses of a configuration, and what its first process answered."""
    folder = place / f"{processes}-{devices}-{x64}"
    settings = {
        "folder": str(folder),
        "problem": "digits",
        "num_tasks": config.num_tasks,
        "num_steps": config.num_steps,
        "probe_every": config.num_steps,
        "checkpoint_every": config.num_steps,
    }
    precision = {"JAX_ENABLE_X64": str(int(x64))}
    if processes == 1:
        group = [_runs.start(settings, devices=devices, environment=precision)]
    else:
        group = _runs.start_together(
            settings, count=processes, devices=devices, environment=precision
        )
    end = [_runs.answer(process) for process in group][0]
    if "error" in end:
        raise RuntimeError(end["error"])
    return curve(folder), end


def difference(losses: np.ndarray, reference: np.ndarray) -> float:
    """The largest one, relative to the largest loss."""
    return float(np.max(np.abs(losses - reference)) / np.max(np.abs(reference)))


def main(config: Config) -> dict:
    """Runs each configuration and writes the table."""
    provenance, rows, cores = _measure.provenance(), [], os.cpu_count() or 1
    references, speed = {}, 0.0
    with tempfile.TemporaryDirectory() as place:
        for processes, devices in [*((1, n) for n in config.devices), (2, 4)]:
            total, row = processes * devices, {}
            for x64 in (False, True):
                losses, end = run(config, pathlib.Path(place), processes, devices, x64=x64)
                reference = references.setdefault(x64, losses)
                row["difference in float64" if x64 else "difference"] = difference(
                    losses, reference
                )
                if not x64:
                    tasks_per_s = config.num_tasks * end["steps_per_s"]
                    speed = speed or tasks_per_s
                    ideal = speed * min(total, cores)
                    row |= {
                        "difference at step 1": difference(losses[:1], reference[:1]),
                        "tasks_per_s": round(tasks_per_s, 1),
                        "tasks_per_s_per_device": round(tasks_per_s / total, 1),
                        "ideal_tasks_per_s": round(ideal, 1),
                        "of_ideal": round(tasks_per_s / ideal, 3),
                        "compile_s": round(end["compile_s"], 1),
                    }
            rows.append({"processes": processes, "devices": total, **row})
            print(json.dumps(rows[-1]), flush=True)
    results = {
        **provenance,
        "config": asdict(config) | {"out": config.out.name},
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "rows": rows,
    }
    os.makedirs(config.out.parent, exist_ok=True)
    train.write_json(config.out, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
