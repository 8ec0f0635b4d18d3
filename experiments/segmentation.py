"""Learned initial weights for segmentation, and the search for how to adapt them.

Command:   python experiments/segmentation.py
Hardware:  one core of an x86-64 CPU; two minutes.
Expected:  learned weights 0.15 and more above random ones after 10 steps at the rate of
           meta-training (bar 0.1), 0.03 to 0.08 above them where both are searched; the search
           gives random weights 0.12 and more, learned ones nothing that is sure (bar 0.02)

Shapes against clutter, five masks to adapt to (`metaopt.tasks.shape_segmentation`). Initial weights
are random, of first-order MAML, whose outer gradient is that of five held-out images, or of
Reptile: Hendryx et al. 2019, arXiv:1912.06290. For each of them, random ones too, learning rate and
steps are searched on validation tasks by Bayesian optimization. All are tested on the same new
tasks; steps of adaptation see the whole support set.

Writes results/segmentation.json and a figure beside it.
"""

import dataclasses
import functools
import pathlib
from typing import Any

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, eval, tasks, train  # noqa: E402
from metaopt import eval as evaluation  # noqa: E402

STARTS = ("random", "first-order MAML", "Reptile")
BARS = {"gain over random": 0.1, "gain by the search": 0.02}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    channels: tuple[int, int] = (6, 8)
    updates: int = 500
    num_tasks: int = 4
    inner_rate: float = 0.1
    inner_steps: int = 3
    outer_rate: float = 3e-3
    default_steps: int = 10
    max_steps: int = 30
    rates: tuple[float, float] = (1e-2, 2.0)
    trials: int = 9
    validation_tasks: int = 16
    test_tasks: int = 60
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "segmentation.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls(
            (0,), (2, 2), 2, 1, 0.1, 1, 3e-3, 1, 2, (1e-2, 1.0), 3, 2, 2, folder / "tiny.json"
        )


def learner(cfg: Config, family, start: str) -> algorithms.MetaLearner:
    """The meta-gradient by its name."""
    settings: dict[str, Any] = {"num_steps": cfg.inner_steps, "num_tasks": cfg.num_tasks}
    inner = optax.sgd(cfg.inner_rate)
    if start == "Reptile":
        return algorithms.reptile(family, inner, **settings)
    return algorithms.maml(family, inner, gradient="first_order", **settings)


def meta_train(cfg: Config, family, start: str):
    """`(key) -> theta`, with a learning rate that falls to a tenth; compiled."""
    made = learner(cfg, family, start)
    outer_opt = optax.adam(optax.cosine_decay_schedule(cfg.outer_rate, cfg.updates, 0.1))

    def step(carry, key_data):
        theta, opt_state = carry
        estimate, _ = made.estimator.estimate(theta, (), (), jax.random.wrap_key_data(key_data))
        updates, opt_state = outer_opt.update(estimate.grad, opt_state, theta)
        return (optax.apply_updates(theta, updates), opt_state), estimate.loss

    @jax.jit
    def whole(key):
        key_init, key_run = jax.random.split(key)
        theta = made.init(key_init)
        keys = jax.random.key_data(jax.random.split(key_run, cfg.updates))
        (theta, _), losses = jax.lax.scan(step, (theta, outer_opt.init(theta)), keys)
        return theta, losses[-max(1, cfg.updates // 10) :].mean()

    return whole


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    family = tasks.shape_segmentation(channels=config.channels)
    curves = functools.partial(
        algorithms.adaptation_curves,
        family,
        optax.sgd,
        num_steps=config.max_steps,
        measure=lambda loss, aux: 1 - aux.iou,
    )
    validation = curves(num_tasks=config.validation_tasks)
    test = jax.jit(curves(num_tasks=config.test_tasks))

    def overlap(theta, rate):
        """After every step, on test tasks that are the same for all."""
        measures = test(theta, (), jax.random.key(3000), learning_rate=rate)
        return 1 - np.asarray(measures).mean(axis=0)

    trainings = {start: meta_train(config, family, start) for start in STARTS[1:]}
    rows = []
    for seed in config.seeds:
        for start in STARTS:
            if start == "random":
                theta, loss = learner(config, family, start).init(jax.random.key(seed)), None
            else:
                theta, loss = trainings[start](jax.random.key(seed))
                loss = float(loss)
            found = evaluation.tune_adaptation(
                validation, {"learning_rate": config.rates}, theta, (), jax.random.key(1000 + seed),
                num_trials=config.trials, num_random=min(5, config.trials),
            )  # fmt: skip
            best = found.best
            default = overlap(theta, config.inner_rate)
            searched = overlap(theta, best.settings["learning_rate"])
            rows.append(
                {
                    "seed": seed,
                    "start": start,
                    "meta-loss at the end": loss,
                    "overlap before": float(default[0]),
                    "overlap, default": float(default[config.default_steps]),
                    "overlap, searched": float(searched[best.num_steps]),
                    "rate": best.settings["learning_rate"],
                    "steps": best.num_steps,
                    "curve, default": default.tolist(),
                    "curve, searched": searched.tolist(),
                }
            )
            print({k: v for k, v in rows[-1].items() if "curve" not in k}, flush=True)
    found = record.write({"runs": rows, "gains": gains(rows), "bars": BARS})
    _figure(found, config)
    return found


def gains(rows: list[dict]) -> dict:
    """Differences of overlaps, per seed."""

    def of(start, name):
        return np.array([row[name] for row in rows if row["start"] == start])

    random = of("random", "overlap, default")
    best_random = of("random", "overlap, searched")
    found = {}
    for start in STARTS:
        default, searched = of(start, "overlap, default"), of(start, "overlap, searched")
        found[start] = {
            "gain over random": (default - random).tolist(),
            "gain over random, both searched": (searched - best_random).tolist(),
            "gain by the search": (searched - default).tolist(),
        }
    return found


def _figure(record: dict, config: Config) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 3), layout="constrained")
    plots = canvas.subplots(1, 2, sharey=True)
    for axes, name in zip(plots, ("default", "searched"), strict=True):
        for start in STARTS:
            curves = [row[f"curve, {name}"] for row in record["runs"] if row["start"] == start]
            axes.plot(np.mean(curves, axis=0), label=start)
            axes.fill_between(
                np.arange(len(curves[0])), np.min(curves, 0), np.max(curves, 0), alpha=0.2
            )
        axes.set(xlabel="steps of adaptation", title=f"{name} learning rate")
    plots[0].set(ylabel="overlap on new tasks")
    plots[0].legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
