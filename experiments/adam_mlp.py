"""Meta-trains the rule that metaopt ships, and its ablations.

Command:   python experiments/adam_mlp.py                   (--seed 1, 2 for other meta-seeds)
           python experiments/adam_mlp.py --ablations all   (the rows of the ablation table)
Hardware:  two cores of an x86-64 CPU, six minutes per meta-seed; a GPU where there is one.
Expected:  see docs/learned_optimizers.md, whose tables are filled from the results.

The rule is `metaopt.learned.adam_mlp`, orthogonalised, of fixed step size, with a learned decay. It
is meta-trained on five small families, none of which has the form of a task of the evaluation
suite: perceptrons on digits, on a mixture of Gaussians and on strokes, a convolutional network on
digits at batch 8 and a one-layer transformer on a Markov chain. Meta-losses are logarithms of
losses relative to those of a guess, and count the more the later they come; those on strokes and of
the convolutional network are validation losses. Writes results/adam_mlp.json, and the weights where
`--weights` says.
"""

import dataclasses
import json
import math
import pathlib
import time
from importlib.metadata import version
from typing import Any

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import core, data, estimators, eval, learned, tasks, train, unroll  # noqa: E402

RULE: dict[str, Any] = {
    "nesterov": True,
    "orthogonalise": True,
    "normalise_output": True,
    "vector_mult": 3.0,
    "decay_power": 4.0,
    "b2": 0.99,
    "weight_decay": 0.3,
    "residual": False,
}
VALIDATED = ("strokes", "convnet")
PROBED = ("digits", "mixture", "strokes", "chain")
PARTS = ("tensor", "vector", "blend", "decay")
# What each ablation changes: settings of the rule, or of the recipe below.
ABLATIONS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "no orthogonalisation": {"rule": {"orthogonalise": False}},
    "Adam's step sizes": {
        "rule": {"orthogonalise": False, "normalise_output": False, "vector_mult": 1.0}
    },
    "a network of entries too": {"rule": {"residual": True}, "parts": ("network", *PARTS)},
    "no network of tensors": {"parts": ("vector", "blend", "decay")},
    "PES for NRES": {"estimator": "pes"},
    "no rescaling": {"rescale": 1.0},
    "validation losses only": {"validated": "all"},
    "all steps count alike": {"late_power": 0.0},
    "no weight decay": {"rule": {"weight_decay": 0.0}},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    steps: int = 200
    """Outer steps of the shipped rule."""
    ablations: tuple[str, ...] = ()
    """Ablations to run instead, or `all`."""
    ablation_steps: int = 100
    """Outer steps of each; they see the first two families only."""
    learning_rate: float = 0.01
    """Of the inner training."""
    outer_learning_rate: float = 0.02
    sigma: float = 0.1
    num_tasks: int = 8
    truncation: int = 50
    horizon: tuple[int, int] = (100, 400)
    rescale: float = 3.0
    """Parameters are rescaled by up to this factor either way."""
    families: tuple[str, ...] = ("digits", "mixture", "strokes", "convnet", "chain")
    probe_every: int = 25
    seed: int = 0
    runs: pathlib.Path = pathlib.Path("runs/adam_mlp")
    """Where the runs are; a run that was stopped goes on."""
    weights: pathlib.Path | None = None
    """Where to write the shipped weights."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "adam_mlp.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls(
            steps=2, num_tasks=2, truncation=5, horizon=(5, 10), families=("mixture",),
            probe_every=1, runs=folder / "runs", weights=folder / "w.npz", out=folder / "tiny.json",
        )  # fmt: skip


def relative(num_classes: int, floor: float = 0.0):
    """The logarithm of a loss above a floor relative to that of a guess."""
    scale = math.log(num_classes) - floor
    base = tasks.relative_log(lambda _: 1.0, floor=1e-3, ceiling=2.0)
    return lambda loss, task_params: base((loss - floor) / scale, task_params)


def markov_chain(num_symbols: int = 24, length: int = 20_000, seed: int = 0):
    """A text whose symbols each have three likely successors, and its entropy in nats."""
    rng = np.random.default_rng(seed)
    logits = rng.gumbel(size=(num_symbols, num_symbols)) * 2
    table = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    tokens = np.zeros(length, np.int32)
    cumulative, draws = table.cumsum(axis=1), rng.random(length)
    for i in range(1, length):
        tokens[i] = min(np.searchsorted(cumulative[tokens[i - 1]], draws[i]), num_symbols - 1)
    entropy = -(table * np.log(table)).sum(axis=1)[tokens].mean()
    half = length // 2
    return data.TextPool(tokens[:half]), data.TextPool(tokens[half:]), float(entropy)


def families(names: tuple[str, ...]) -> dict[str, tuple[core.TaskFamily, core.Split]]:
    """The families with their pools: trained on, and meta-validated on."""
    digits = data.digits()
    on_digits = core.Split(digits.train, digits.validation)
    key_mixture, key_strokes, key_order = jax.random.split(jax.random.key(0), 3)
    mixture = data.gaussian_mixture(key_mixture, num_classes=5, dim=16, num_examples=1600)
    strokes = data.strokes(key_strokes, num_classes=20, examples_per_class=80)
    strokes = strokes._replace(inputs=strokes.inputs.reshape(1600, 7, 4, 7, 4, 1).mean((2, 4)))
    order = jax.random.permutation(key_order, 1600)

    def halves(pool):
        parts = (order[:1200], order[1200:])
        return core.Split(*(jax.tree.map(lambda x, rows=rows: x[rows], pool) for rows in parts))

    chain_train, chain_test, entropy = markov_chain()
    made = {
        "digits": (tasks.mlp((8, 8, 1), 10, hidden=(32,), batch_size=32), on_digits, relative(10)),
        "mixture": (
            tasks.mlp((16,), 5, hidden=(24, 24), activation="tanh", batch_size=16),
            halves(mixture),
            relative(5),
        ),
        "strokes": (
            tasks.mlp((7, 7, 1), 20, hidden=(24, 24), activation="gelu", batch_size=32),
            halves(strokes),
            relative(20),
        ),
        "convnet": (
            tasks.convnet((8, 8, 1), 10, channels=(4, 8), batch_size=8), on_digits, relative(10)
        ),
        "chain": (
            tasks.transformer_lm(24, depth=1, width=16, heads=2, length=16, batch_size=8),
            core.Split(chain_train, chain_test),
            relative(24, entropy),
        ),
    }  # fmt: skip
    chosen = {name: made[name] for name in names}
    return {name: (f._replace(normalise=loss), pools) for name, (f, pools, loss) in chosen.items()}


def part_of(rule: core.LearnedOptimizer, theta, parts: tuple[str, ...]) -> core.LearnedOptimizer:
    """The rule with some parts of `theta` learned and the others fixed."""
    return core.LearnedOptimizer(
        lambda key: {part: theta[part] for part in parts},
        lambda learned_parts, *, num_steps=None: rule.optimizer(
            {**theta, **learned_parts}, num_steps=num_steps
        ),
    )


def meta_train(config: Config, name: str, num_steps: int, changes: dict[str, Any]) -> dict:
    """One run; returns its best theta, and facts for the results."""
    settings = {
        **dataclasses.asdict(config),
        **changes,
        "rule": {**RULE, **changes.get("rule", {})},
    }
    whole = learned.adam_mlp(config.learning_rate, **settings["rule"])
    key_theta, key_run = jax.random.split(jax.random.key(config.seed))
    theta = whole.init(key_theta)
    rule = part_of(whole, theta, settings.get("parts", PARTS))
    validated = settings.get("validated", VALIDATED)
    made, pools, probes = {}, {}, {}
    for family_name, (family, pool) in families(settings["families"]).items():
        on_outer = validated == "all" or family_name in validated
        factor = settings["rescale"]
        inner = tasks.rescale(family, low=1 / factor, high=factor) if factor > 1 else family
        system = core.training(inner, rule, outer_loss="validation" if on_outer else "train")
        make = getattr(estimators, settings.get("estimator", "nres"))
        made[family_name] = make(
            unroll.late_losses(system, power=settings.get("late_power", 1.0)),
            sigma=settings["sigma"],
            truncation=config.truncation,
            horizon=unroll.log_uniform(*config.horizon),
            num_tasks=config.num_tasks,
        )
        pools[family_name] = pool if on_outer else pool.inner
        if family_name in PROBED:
            score = eval.probe(family, rule, num_steps=config.horizon[1], num_tasks=8)
            probes[family_name] = train.Probe(score, pool.outer)
    peak, warmup = settings["outer_learning_rate"], min(50, num_steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, num_steps, 0.1 * peak)
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))
    elsewhere = ("runs", "weights", "out", "ablations", "ablation_steps", "steps")
    kept = {k: v for k, v in settings.items() if k not in elsewhere}
    recorded = {"name": name, "steps": num_steps, **kept}
    start = time.perf_counter()
    result = train.meta_train(
        made, rule.init(key_theta), pools, key_run,
        outer_opt=outer, num_steps=num_steps, probes=probes, probe_every=config.probe_every,
        directory=config.runs / name.replace(" ", "-"), settings=recorded,
        on_report=lambda step, metrics: print(name, step, metrics, flush=True),
    )  # fmt: skip
    best = {**theta, **result.state.best_theta}
    return {
        "theta": best,
        "record": {
            "settings": recorded,
            "rule": settings["rule"],
            "probe": float(result.state.best_score),
            "seconds": time.perf_counter() - start,
            "learned": {part: float(best[part]) for part in ("vector", "blend", "decay")},
            "measured": {"at first": measure(whole, theta), "trained": measure(whole, best)},
        },
    }


def measure(rule: core.LearnedOptimizer, theta, num_steps: int = 300) -> dict[str, float]:
    """Losses of a network that no meta-training saw, on digits, at the one learning rate."""
    family = tasks.mlp((8, 8, 1), 10, hidden=(64, 64), activation="tanh", batch_size=32)
    digits = data.digits()

    @jax.jit
    def run(theta, pools, key):
        opt = rule.optimizer(theta, num_steps=num_steps)
        return eval.learning_curve(family, opt, pools, key, num_steps=num_steps, num_seeds=8)

    curves = run(theta, core.Split(digits.train, digits.test), jax.random.key(7))
    return {
        "mean training loss": float(curves.normalised.train.mean()),
        "final training loss": float(curves.final_loss.mean()),
        "test loss": float(curves.validation_loss[:, -1].mean()),
        "test accuracy": float(curves.validation_accuracy[:, -1].mean()),
    }


def main(config: Config) -> dict:
    """Runs what is asked for, writes the results and returns them."""
    runs = {f"seed {config.seed}" if config.seed else "shipped": (config.steps, {})}
    if config.ablations:
        names = tuple(ABLATIONS) if config.ablations == ("all",) else config.ablations
        few = {"families": config.families[:2]}
        runs = {name: (config.ablation_steps, few | ABLATIONS[name]) for name in names}
    stored = json.loads(config.out.read_text())["runs"] if config.out.exists() else {}
    versions = {name: version(name) for name in ("metaopt", "jax", "jaxlib", "optax")}
    record = {"runs": stored, "versions": versions}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    for name, (num_steps, changes) in runs.items():
        run = meta_train(config, name, num_steps, changes)
        if config.weights is not None and not config.ablations:
            learned.save(
                config.weights,
                run["theta"],
                optimizer="adam_mlp",
                settings={"learning_rate": config.learning_rate, **run["record"]["rule"]},
                training=run["record"],
                overwrite=True,
            )
        record["runs"][name] = run["record"]
        train.write_json(config.out, record)  # After each: they take minutes.
    figure(record, config.out)
    return json.loads(config.out.read_text())


def figure(record: dict, path: pathlib.Path) -> None:
    """What meta-training changed, and where each ablation ends."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8, 0.9 + 0.3 * len(record["runs"])), layout="constrained")
    panels = canvas.subplots(1, 2, sharey=True)
    for panel, loss in zip(panels, ("mean training loss", "test loss"), strict=True):
        for stage, mark in (("at first", "o"), ("trained", "D")):
            values = [run["measured"][stage][loss] for run in record["runs"].values()]
            panel.plot(values, list(record["runs"]), mark, label=stage)
        panel.set(xlabel=f"{loss} (nats)")
        panel.margins(0.08, 0.5 / len(record["runs"]))
        panel.grid(color="0.9")
    panels[0].invert_yaxis()
    panels[1].legend(frameon=False)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
