"""Task interpolation when base classes are few: prototypes with and without MLTI.

Command:   python experiments/few_tasks.py
Hardware:  one core of an x86-64 CPU; one minute.
Expected:  no help where classes are fewest: with 6 of them MLTI loses 1 point at one shot and 3 at
           five; with 20 it gains 1.6 and 0.9 (standard errors of 0.04 to 0.3 over five seeds)

Prototypes (Snell et al. 2017, arXiv:1703.05175) are trained on 6, 10 or 20 procedural characters of
20 drawings, and tested on 40 others, 5 ways, 1 and 5 shots. MLTI (Yao et al. 2021,
arXiv:2106.02695) mixes half of the training tasks with another one in the first hidden layer. Runs
differ in nothing else: tasks, first parameters and updates have the same keys.

Writes results/few_tasks.json and a figure beside it.
"""

import dataclasses
import pathlib

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, data, eval, tasks, train  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    base_classes: tuple[int, ...] = (6, 10, 20)
    novel_classes: int = 40
    jitter: float = 1.4
    """Variation within a class."""
    widths: tuple[int, ...] = (128, 64)
    updates: int = 500
    num_tasks: int = 4
    episodes: int = 300
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "few_tasks.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0,), (6,), 6, 1.4, (8, 4), 2, 2, 4, folder / "tiny.json")


def network(widths: tuple[int, ...]):
    """A perceptron whose first layer mixes tasks."""
    init, embed = tasks.mlp_embedding((16, 16, 1), widths=widths)
    return init, algorithms.mix_hidden(
        lambda body, inputs: embed(body[:1], inputs), lambda body, hidden: embed(body[1:], hidden)
    )


def pools(cfg: Config, seed: int):
    """As many base classes as are ever used, and novel ones."""
    base = max(cfg.base_classes)
    total = base + cfg.novel_classes
    drawn = data.strokes(
        jax.random.key(seed), num_classes=total, examples_per_class=20, size=16, jitter=cfg.jitter
    )
    inputs = drawn.inputs.reshape(total, 20, 16, 16, 1)
    return [tasks.episodes(data.ClassPool(part)) for part in (inputs[:base], inputs[base:])]


def programs(cfg: Config):
    """Training, for any number of classes and any chance of mixing, and the test."""
    init, embed = network(cfg.widths)

    def family(count: int, shots: int):
        return tasks.few_shot_embedding(
            init, embed, pool_shape=(count, 20, 16, 16, 1), num_shots=shots
        )

    def fit(count, probability, pool, key):
        key_init, key_run = jax.random.split(key)
        plain = family(max(cfg.base_classes), 1)

        def sample(key):
            """Only classes below `count`; the order of the others puts them last."""
            key_task, key_classes = jax.random.split(key)
            task = plain.sample(key_task)
            order = jax.random.uniform(key_classes, (max(cfg.base_classes),))
            order = order + (jnp.arange(len(order)) >= count)
            return task._replace(classes=jnp.argsort(order)[:5].astype(jnp.int32))

        mixed = algorithms.mlti(
            plain._replace(sample=sample), probability=probability, where="hidden"
        )
        learner = algorithms.prototypes(mixed, embed, num_tasks=cfg.num_tasks)
        outer_opt = optax.adam(1e-3)

        def step(carry, index):
            theta, opt_state = carry
            found, _ = learner.estimator.estimate(
                theta, (), pool, jax.random.fold_in(key_run, index)
            )
            updates, opt_state = outer_opt.update(found.grad, opt_state, theta)
            return (optax.apply_updates(theta, updates), opt_state), None

        theta = learner.init(key_init)
        carry = (theta, outer_opt.init(theta))
        return jax.lax.scan(step, carry, jnp.arange(cfg.updates))[0][0]

    def test(theta, pool, key):
        rows = []
        for shots in (1, 5):
            novel = family(cfg.novel_classes, shots)
            adapt = algorithms.prototypes(novel, embed).adapt
            scores = algorithms.few_shot_scores(novel, adapt, num_tasks=cfg.episodes)
            rows.append(scores(theta, pool, jax.random.clone(key)).aux.accuracy.mean())
        return rows

    return jax.jit(fit), jax.jit(test)


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    fit, test = programs(config)
    runs = []
    for seed in config.seeds:
        base, novel = pools(config, seed)
        for count in config.base_classes:
            for name, probability in (("prototypes", 0.0), ("with MLTI", 0.5)):
                theta = fit(count, probability, base, jax.random.key(100 + seed))
                one, five = test(theta, novel, jax.random.key(1000 + seed))
                row = {"seed": seed, "base classes": count, "method": name}
                runs.append(row | {"1 shot": float(one), "5 shots": float(five)})
        print(runs[-2:], flush=True)
    found = record.write({"runs": runs, "gains": gains(config, runs)})
    _figure(found, config.out)
    return found


def gains(cfg: Config, runs: list[dict]) -> dict:
    """What MLTI adds in points, per seed, with the mean's standard error."""
    found = {}
    for count in cfg.base_classes:
        for shots in ("1 shot", "5 shots"):
            both = [
                [r[shots] for r in runs if (r["method"], r["base classes"]) == (method, count)]
                for method in ("with MLTI", "prototypes")
            ]
            gain = 100 * np.subtract(*both)
            error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0
            found[f"{count} classes, {shots}"] = {
                "per seed": [round(float(x), 2) for x in gain],
                "mean": round(float(gain.mean()), 2),
                "standard error": round(error, 2),
            }
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 3), layout="constrained")
    counts = sorted({r["base classes"] for r in record["runs"]})
    for axes, shots in zip(canvas.subplots(1, 2), ("1 shot", "5 shots"), strict=True):
        for method, marker in (("prototypes", "o"), ("with MLTI", "s")):
            values = np.array(
                [
                    [r[shots] for r in record["runs"] if (r["method"], r["base classes"]) == key]
                    for key in ((method, count) for count in counts)
                ]
            )
            spread = np.abs(np.stack([values.min(1), values.max(1)]) - values.mean(1))
            axes.errorbar(counts, values.mean(1), yerr=spread, marker=marker, label=method)
        axes.set(xlabel="base classes", title=shots, xscale="log")
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
    canvas.axes[0].set(ylabel="accuracy on new characters")
    canvas.axes[0].legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
