"""A Celo2-style rule, meta-trained on embedded digits, against tuned Adam.

Command:   python experiments/digits.py
Hardware:  two cores of an x86-64 CPU. Each of the six runs is `metaopt train --preset digits`.
Expected:  mean training loss below that of Adam tuned on the same grid with the same cosine
           schedule, on new seeds and on a deeper net that meta-training never saw.

Three meta-seeds with the training loss as meta-loss and three with the validation loss. A score is
the learned rule's number over Adam's, paired by evaluation seed; scores are aggregated by the
interquartile mean over meta-seeds and evaluation seeds with a 95 % interval that resamples
evaluation seeds within each meta-seed. Writes results/digits.json and a figure beside it.
"""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import tyro

from metaopt import cli, eval, train

HERE = pathlib.Path(__file__).parent
PROBLEMS = {"digits/mlp": "digits-mlp", "digits/mlp, deeper": "digits-mlp-deeper"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    meta_seeds: tuple[int, ...] = (0, 1, 2)
    outer_losses: tuple[str, ...] = ("train", "validation")
    settings: tuple[str, ...] = ("--preset", "digits")
    """Arguments of `metaopt train`."""
    runs: pathlib.Path = pathlib.Path("runs/digits-experiment")
    """Where the runs are; those that are complete are not run again, others go on."""
    out: pathlib.Path = HERE / "results" / "digits.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        settings = (
            "--outer.steps 2 --outer.warmup 1 --estimator.truncation 5 --estimator.horizon 5 10 "
            "--estimator.num-tasks 2 --eval.horizon 10 --eval.probe-tasks 2 --eval.tuning-seeds 2 "
            "--eval.seeds 4 --eval.grid-per-decade 1 --eval.grid 0.01 0.1 --eval.held-out deeper"
        )
        return cls((0,), ("train",), tuple(settings.split()), folder / "runs", folder / "tiny.json")


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    records = {}
    for outer_loss in config.outer_losses:
        folders = [config.runs / f"{outer_loss}-{seed}" for seed in config.meta_seeds]
        for seed, folder in zip(config.meta_seeds, folders, strict=True):
            timing = folder / "seconds.json"
            if timing.exists():  # The run and its evaluation are complete.
                continue
            start = time.perf_counter()
            words = ["--task.outer-loss", outer_loss, "--seed", str(seed), "--out", str(folder)]
            if cli.main(["train", *config.settings, *words]):
                raise SystemExit(f"metaopt train into {folder} failed")
            train.write_json(timing, time.perf_counter() - start)
        records[outer_loss] = _summarise(folders)
    found = record.write(
        {
            "versions": json.loads((folders[-1] / "settings.json").read_text())["versions"],
            "run": json.loads((folders[-1] / "settings.json").read_text())["settings"],
            "results": records,
        }
    )
    _figure(found, config.out)
    return found


def _summarise(folders: list[pathlib.Path]) -> dict:
    problems = {}
    for problem, name in PROBLEMS.items():
        contents = [json.loads((f / "eval" / f"{name}.json").read_text()) for f in folders]
        adam, rule = (
            [_contender(content, wanted) for content in contents]
            for wanted in ("adam", "learned celo2")
        )
        problems[problem] = {
            "learning_rate": {
                "adam": adam[0]["learning_rate"],
                "learned": [r["learning_rate"] for r in rule],
            },
            **{
                label: _compare(rule, adam, key)
                for label, key in {
                    "mean training loss": "mean_losses",
                    "final training loss": "final_losses",
                    "test loss": "validation_losses",
                }.items()
            },
            "test accuracy": {
                "adam": adam[0]["validation_accuracy"],
                "learned": [r["validation_accuracy"] for r in rule],
            },
            "speed-up": _interval(np.array([r["speedup"] for r in rule])),
            "curves": {
                "adam": _thinned(adam[0]["curve"]),
                "learned": [_thinned(r["curve"]) for r in rule],
            },
        }
    summaries = [json.loads((f / "summary.json").read_text()) for f in folders]
    seconds = [json.loads((f / "seconds.json").read_text()) for f in folders]
    return {"problems": problems, "summaries": summaries, "seconds": seconds}


def _contender(content: dict, name: str) -> dict:
    return next(c for c in content["contenders"] if c["name"] == name)


def _thinned(curve: dict) -> dict:
    """Every fourth point of a mean curve, for the figure."""
    mean = [None if x is None else float(f"{x:.4g}") for x in curve["mean"][::4]]
    return {"step": curve["step"][::4], "mean": mean}


def _compare(rule: list[dict], adam: list[dict], key: str) -> dict:
    """The rule's number over Adam's, paired by seed, and both means."""
    ours, theirs = (np.array([c[key] for c in side], np.float64) for side in (rule, adam))
    return {
        "ratio": _interval(ours / theirs),
        "ratio per meta-seed": (ours.mean(axis=1) / theirs.mean(axis=1)).tolist(),
        "adam": float(theirs[0].mean()),
        "learned": ours.mean(axis=1).tolist(),
    }


def _interval(scores: np.ndarray) -> dict:
    return eval.iqm_interval(scores, jax.random.key(0))._asdict()


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8, 3.4), layout="constrained")
    axes = canvas.subplots(1, len(PROBLEMS), sharey=True)
    colours = {"train": "#D55E00", "validation": "#009E73"}
    for panel, problem in zip(axes, PROBLEMS, strict=True):
        for index, (outer_loss, result) in enumerate(record["results"].items()):
            curves = result["problems"][problem]["curves"]
            if index == 0:
                panel.plot(
                    curves["adam"]["step"],
                    curves["adam"]["mean"],
                    color="#0072B2",
                    label="Adam, tuned",
                )
            for seed, curve in enumerate(curves["learned"]):
                panel.plot(
                    curve["step"],
                    curve["mean"],
                    color=colours[outer_loss],
                    alpha=0.7,
                    label=None if seed else f"learned, meta-loss: {outer_loss} loss",
                )
        panel.set(yscale="log", xlabel="inner step", title=problem)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("training loss (nats), smoothed")
    axes[0].legend(frameon=False)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
