"""The table of the evaluation suite: baselines and shipped weights.

    OPENBLAS_NUM_THREADS=1 nice -n 12 taskset -c 1 python benchmarks/suite.py --folder runs/suite

computes the cells that the folder lacks (ten baselines, two of them on another decay too, Adam's
envelopes, and weights that ship, tuned and not, on 24 tasks) and writes the scores and a figure.
The cells are those of `metaopt eval --suite --out FOLDER`: processes of that command with different
`--suite-tasks` may share the work, and learned rules that are evaluated there find the baselines.
One thread, because BLAS threads that wait for a busy core make Shampoo's eigendecompositions a
hundred times slower.

    ... python benchmarks/suite.py --folder runs/suite --weights runs/seed_1.npz runs/seed_2.npz \
        --out benchmarks/results/suite_seeds.json

scores other weights of `experiments/adam_mlp.py --seed 1 --weights runs/seed_1.npz`, and so on,
tuned like those that ship: eight minutes of process time each.

Expected: an hour of process time on one core without contention; no baseline is far above tuned
AdamW on all tasks, and none fails.

Results: `results/suite.json`, `results/suite.png`.
"""

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()

import json  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import _measure  # noqa: E402
import optax  # noqa: E402
import optax.contrib  # noqa: E402
import rich  # noqa: E402
import tyro  # noqa: E402

from metaopt import eval, learned  # noqa: E402

RESULTS = pathlib.Path(__file__).parent / "results"


@dataclass(frozen=True)
class Config:
    """What to score.

    Attributes:
        folder: of the cells.
        contenders: their names; all if none is given.
        weights: files of weights to score instead, each a contender of the file's name.
        out: where the results go.
    """

    folder: pathlib.Path = pathlib.Path("runs") / "suite"
    contenders: tuple[str, ...] = ()
    weights: tuple[pathlib.Path, ...] = ()
    out: pathlib.Path = RESULTS / "suite.json"


def main(config: Config) -> dict:
    """Computes what is missing and writes the scores."""
    provenance = _measure.provenance()
    shipped = [
        eval.pretrained_contender(name, is_tuned=is_tuned)
        for name in learned.pretrained_names()
        for is_tuned in (True, False)
    ]
    contenders = [*eval.suite_baselines(), *power_decayed(), *shipped]
    if config.weights:
        contenders = [from_file(file) for file in config.weights]
    elif config.contenders:
        contenders = [contender for contender in contenders if contender.name in config.contenders]
    summary = eval.run_suite(contenders, config.folder, on_report=print)
    record = {"provenance": provenance, **_without_seeds(summary)}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(record, indent=1) + "\n")
    eval.suite_figure(summary, config.out)
    rich.print(eval.suite_table(summary))
    return record


def power_decayed() -> list[eval.Contender]:
    """AdamW and Muon on the shape that the shipped decay has, (1 - t/T)³, in place of a cosine."""

    def decayed(name, optimizer, **settings):
        def make(value, num_steps):
            schedule = optax.polynomial_schedule(1.0, 0.0, 3, num_steps)
            return optimizer(lambda count: value * schedule(count), **settings)

        return eval.Contender(name, make, 10**-2.0)

    return [
        decayed("adamw, cubic decay", optax.adamw),
        decayed("muon, cubic decay", optax.contrib.muon, consistent_rms=0.2),
    ]


def from_file(file: pathlib.Path) -> eval.Contender:
    """Weights of a rule with a decay of its own, tuned around its learning rate."""
    header = learned.weights_info(file)
    factory, settings = getattr(learned, header["optimizer"]), header["settings"]

    def make(value, num_steps):
        rule = factory(**{**settings, "learning_rate": value})
        return rule.optimizer(learned.load(file, rule), num_steps=num_steps)

    digest = header["weights_sha256"][:12]
    return eval.Contender(file.stem, make, settings["learning_rate"], digest=digest)


def _without_seeds(summary: dict) -> dict:
    """Medians over seeds in place of lists, to spare the repository."""
    contenders = {}
    for name, entry in summary["contenders"].items():
        tasks = {
            task: {k: statistics.median(v) if isinstance(v, list) else v for k, v in scores.items()}
            for task, scores in entry["tasks"].items()
        }
        contenders[name] = {**entry, "tasks": tasks}
    return {**summary, "contenders": contenders}


if __name__ == "__main__":
    main(tyro.cli(Config))
