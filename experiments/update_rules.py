"""Update rules of the literature, tuned alike, on six tasks.

Command:   python experiments/update_rules.py
Hardware:  one core of an x86-64 CPU; half an hour.
Expected:  no rule is the fastest on all tasks; Muon and Shampoo lead on networks, and of the rules
           that optax lacks Grams is the one that is faster than tuned AdamW on most tasks

Each rule has one number to tune: its learning rate, on a cosine, or a factor of its step where it
has none. It gets five values, half a decade apart, around a centre of its own, on two seeds that
are not reported; the chosen value is run on five others. Reported is the speed-up: steps that tuned
AdamW needs to its own last training loss, over those that the rule needs to the same one; the
median over seeds. Where a rule does not get there in most seeds, "not reached", the number is the
bound that is left, up to 1, or 0 if the loss has risen, which counts as 0.1 in means: means of such
rules flatter them. Steps are counted, not gradients: a number behind a name says how many gradients
a step takes, a plus that some steps take more. With five values a choice is often an end of the
grid; the results say where.

Cells that are there are not computed again. Writes results/update_rules.json and a figure beside.
"""

import dataclasses
import pathlib

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()

import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import eval, optimizers, train  # noqa: E402
from metaopt import eval as evaluation  # noqa: E402

TASKS = ("logistic", "mlp_four_layers", "autoencoder", "gru", "diabetes", "rosenbrock_20")


def decayed(name, optimizer, centre, **settings) -> evaluation.Contender:
    """A rule with a learning rate."""

    def make(value, num_steps):
        return optimizer(evaluation.cosine(value, num_steps), **settings)

    return evaluation.Contender(name, make, centre)


def contenders() -> tuple[evaluation.Contender, ...]:
    """Rules that optax has, then those of `metaopt.optimizers`."""
    return (
        *evaluation.suite_baselines(),
        decayed("nesterov", optax.sgd, 0.1, momentum=0.9, nesterov=True),
        decayed("rmsprop", optax.rmsprop, 10**-2.5),
        decayed("adagrad", optax.adagrad, 10**-1.5),
        decayed("adabelief", optax.adabelief, 10**-2.0),
        decayed("radam", optax.radam, 10**-2.0),
        decayed("adan", optax.adan, 10**-2.0),
        decayed("ademamix", optax.contrib.ademamix, 10**-2.0, b3=0.99),
        decayed("madgrad", optax.contrib.madgrad, 10**-2.0),
        # Those that optax lacks.
        decayed("complex momentum", optimizers.complex_momentum, 0.1),
        decayed("grams", optimizers.grams, 10**-2.0),
        decayed("adamp", optimizers.adamp, 10**-2.0),
        decayed("sgdp", optimizers.sgdp, 0.1, momentum=0.9),
        decayed("diffgrad", optimizers.diffgrad, 10**-2.0),
        decayed("opt-amsgrad", optimizers.opt_amsgrad, 10**-2.0),
        decayed("adagrad-norm", optimizers.adagrad_norm, 1.0),
        decayed("autoclip + momentum", clipped_momentum, 0.1),
        decayed("ademamix, scheduled", scheduled_ademamix, 10**-2.0),
        decayed("shampoo, adagrad graft", optimizers.shampoo, 10**-1.5, graft="adagrad", every=20),
        decayed("fosi + adam (+)", fosi_adam, 10**-2.0),
        decayed("gam + momentum (4)", gam_momentum, 0.1),
        decayed("gradient penalty + momentum (2)", penalised_momentum, 0.1),
        decayed("smb (2)", optimizers.smb, 1.0),
        decayed("sania, adam_sqr", scaled(optimizers.sania("adam_sqr")), 1.0),
        decayed("oasis (2)", scaled(optimizers.oasis(initial_rate=1e-2)), 1.0),
    )


def scaled(rule):
    """A rule without a learning rate, its updates times a factor."""
    return lambda factor: optax.chain(rule, optax.scale_by_schedule(factor))


def clipped_momentum(learning_rate):
    """Momentum behind AutoClip."""
    return optax.chain(optimizers.auto_clip(), optax.sgd(learning_rate, momentum=0.9))


def scheduled_ademamix(learning_rate):
    """AdEMAMix with the warm-ups of its paper."""
    alpha = optimizers.ademamix_alpha_schedule(num_steps=300)
    b3 = optimizers.ademamix_b3_schedule(num_steps=300, b3=0.99)
    return optax.contrib.ademamix(learning_rate, alpha=alpha, b3=b3)


def fosi_adam(learning_rate):
    """Adam beside Newton steps along the five largest eigenvectors, renewed every 50 steps."""
    return optimizers.fosi(optax.adam(learning_rate), clip=1.0, every=50)


def gam_momentum(learning_rate):
    """Momentum with the penalty of GAM."""
    return optax.chain(optimizers.gam(rho=0.05), optax.sgd(learning_rate, momentum=0.9))


def penalised_momentum(learning_rate):
    """Momentum with a penalty on the norm of the gradient."""
    return optax.chain(optimizers.gradient_penalty(), optax.sgd(learning_rate, momentum=0.9))


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    tasks: tuple[str, ...] = TASKS
    rules: tuple[str, ...] = ()
    """By name; all if none is given."""
    num_values: int = 5
    num_tuning_seeds: int = 2
    max_steps: int = 300
    cells: pathlib.Path = pathlib.Path("runs") / "update_rules"
    """Folder of what was computed before."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "update_rules.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in half a minute."""
        rules = ("adamw", "complex momentum")
        return cls(("logistic",), rules, 1, 1, 4, folder / "cells", folder / "tiny.json")


def main(config: Config) -> dict:
    """Computes what is missing, writes the results and returns them."""
    record = train.Record(config)
    chosen = [x for x in contenders() if not config.rules or x.name in config.rules]
    settings = evaluation.SuiteSettings(
        num_values=config.num_values,
        num_tuning_seeds=config.num_tuning_seeds,
        max_steps=config.max_steps,
        envelope_factor=1,
    )
    scores = evaluation.run_suite(
        chosen,
        config.cells,
        tasks=[task for task in evaluation.suite_tasks() if task.name in config.tasks],
        settings=settings,
        on_report=print,
    )
    rows = {name: _row(entry) for name, entry in scores["contenders"].items()}
    ranked = sorted(rows.items(), key=lambda item: -item[1]["geometric mean"])
    found = record.write({"results": dict(ranked)})
    _figure(found, config)
    return found


def _row(entry: dict) -> dict:
    """Speed-ups of one rule by task, and what sums them up."""
    tasks = entry["tasks"]
    speedups = {name: round(float(np.median(x["speedup"])), 3) for name, x in tasks.items()}
    bounded = np.maximum(list(speedups.values()), 0.1)
    return {
        "speed-up": speedups,
        "not reached": [n for n, x in tasks.items() if 2 * x["censored"] > len(x["speedup"])],
        "geometric mean": round(float(np.exp(np.mean(np.log(bounded)))), 3),
        "value": {name: float(f"{task['value']:.3g}") for name, task in tasks.items()},
        "at an end of the grid": [name for name, task in tasks.items() if task["at_edge"]],
        "failure rate": entry["failure_rate"],
        "time of an update over that of Adam": round(entry["overhead"], 2),
    }


def _figure(record: dict, config: Config) -> None:
    from matplotlib.figure import Figure

    rows = record["results"]
    tasks = config.tasks
    table = np.array([[row["speed-up"][task] for task in tasks] for row in rows.values()])
    is_bound = np.array([[t in row["not reached"] for t in tasks] for row in rows.values()])
    canvas = Figure(figsize=(7.5, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = canvas.subplots()
    axes.set_facecolor("0.85")
    shades = np.ma.masked_array(np.log2(np.clip(table, 0.25, 4)), is_bound)
    image = axes.imshow(shades, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        bound = is_bound[row, column]
        text = "not reached" if bound else f"{value:.2f}"
        shade = "white" if not bound and abs(np.log2(max(value, 0.01))) > 1.4 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    labels = [f"{name}  {row['geometric mean']:.2f}" for name, row in rows.items()]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8, rotation=20)
    bar = canvas.colorbar(image, ticks=[-2, -1, 0, 1, 2], pad=0.02)
    bar.ax.set_yticklabels(["≤ ¼", "½", "1", "2", "≥ 4"])
    bar.set_label("speed-up over tuned AdamW, in steps")
    eval.save_figure(canvas, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
