"""Embeddings for learning from few examples: what trains them and what reads them.

Command:   python experiments/good_embedding.py            (--tiny for a check of the script)
Hardware:  one core of an x86-64 CPU; four minutes.
Expected:  one shot, mean of three seeds, in points: good embedding less prototypes 4 (2 to 5, below
           the 5 hoped for), transductive less inductive 4.5, ProtoTransfer less raw pixels 15,
           prototypes after it 1.2, distillation 0

Characters that do not occur in training, 5 ways, 15 queries per class. Every training sees 60 base
classes of 20 procedural strokes through the same distortions, with a perceptron of 256-256-128-64.
prototypes: Snell et al. 2017, arXiv:1703.05175. good embedding: Tian et al. 2020, arXiv:2003.11539.
transductive: Ziko et al. 2021, arXiv:2106.09516. ProtoTransfer, without labels: Medina et al. 2020,
arXiv:2006.11325. then prototypes, then fine-tuning at a rate chosen on five tasks of further
classes: Hu et al. 2022, arXiv:2204.07305. Trainings have about the same cost, not the same updates:
prototypes, which draw 640 images for one, have the fewest. This is no comparison at convergence.

Writes results/good_embedding.json and a figure beside it.
"""

import dataclasses
import pathlib
import platform
import time

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, core, data, tasks, train  # noqa: E402

RATES = (0.0, 1e-4, 1e-3, 1e-2)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    classes: tuple[int, int, int] = (60, 40, 40)
    """Base, validation and novel ones."""
    jitter: float = 1.4
    widths: tuple[int, ...] = (256, 128, 64)
    updates: tuple[int, int] = (400, 1500)
    """Of prototypes, whose batches are the largest, and of the other two."""
    num_tasks: int = 8
    episodes: int = 300
    tuned_episodes: int = 60
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "good_embedding.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0,), (8, 5, 5), 1.4, (8, 4), (2, 2), 2, 2, 5, folder / "tiny.json")


def network(widths: tuple[int, ...]):
    """A perceptron with a rectifier after every layer, the last one included."""

    def init(key):
        he, keys = jax.nn.initializers.he_normal(), jax.random.split(key, len(widths))
        sizes = zip(keys, (256, *widths[:-1]), widths, strict=True)
        return [{"w": he(k, (a, b)), "b": jnp.zeros(b)} for k, a, b in sizes]

    def embed(body, inputs):
        inputs = inputs.reshape(len(inputs), -1)
        for layer in body:
            inputs = jax.nn.relu(inputs @ layer["w"] + layer["b"][None])
        return inputs

    return init, embed


def augment(inputs, key):
    """About what varies within a class."""
    return data.random_warp(inputs, key, angle=0.2, scale=0.1, shift=0.04, displacement=0.03)


def pools(cfg: Config, seed: int) -> list[core.Split]:
    """Base, validation and novel classes."""
    total, key = sum(cfg.classes), jax.random.key(seed)
    drawn = data.strokes(key, num_classes=total, examples_per_class=20, size=16, jitter=cfg.jitter)
    parts = jnp.split(drawn.inputs.reshape(total, 20, 16, 16, 1), np.cumsum(cfg.classes)[:-1])
    return [tasks.episodes(data.ClassPool(part)) for part in parts]


def same(body, inputs):
    """The embedding of inputs that are features already."""
    return inputs.reshape(len(inputs), -1)


def feature_family(shape: tuple[int, ...], shots: int, *, unit: bool):
    """Episodes of features."""
    embed = tasks.unit_features(same) if unit else same
    family = tasks.few_shot_embedding(
        lambda key: jnp.zeros(1), embed, pool_shape=shape, num_shots=shots
    )
    return family, embed


class Bench:
    """Compiled trainings and tests, shared by the seeds."""

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self.init, self.embed = network(cfg.widths)
        self.made = {}

    def family(self, *, part: int, distorted: bool = False):
        """1-shot episodes of one part of the classes."""
        shape = (self.cfg.classes[part], 20, 16, 16, 1)
        family = tasks.few_shot_embedding(self.init, self.embed, pool_shape=shape)

        def batch(data, task_params, key):
            key_batch, key_augment = jax.random.split(key)
            drawn = family.batch(data, task_params, key_batch)
            return drawn._replace(inputs=augment(drawn.inputs, key_augment))

        return family._replace(batch=batch) if distorted else family

    def learner(self, name: str):
        """A learner on the base classes."""
        if name == "prototypes":
            family = self.family(part=0, distorted=True)
            return algorithms.prototypes(family, self.embed, num_tasks=self.cfg.num_tasks)
        if name == "good embedding":
            return algorithms.good_embedding(
                self.family(part=0), self.embed, num_classes=self.cfg.classes[0], augment=augment
            )
        return algorithms.proto_transfer(
            self.family(part=0), self.embed, optax.adam(1e-3), augment=augment
        )

    def fit(self, name: str, theta, pool, key):
        """Meta-training by Adam with a cosine schedule, in one program."""
        learner, steps = self.learner(name), self.cfg.updates[name != "prototypes"]
        outer_opt = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

        def run(theta, pool, key):
            def step(carry, index):
                theta, opt_state = carry
                found, _ = learner.estimator.estimate(
                    theta, (), pool, jax.random.fold_in(key, index)
                )
                updates, opt_state = outer_opt.update(found.grad, opt_state, theta)
                return (optax.apply_updates(theta, updates), opt_state), None

            carry = (theta, outer_opt.init(theta))
            return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

        kind = (name, isinstance(pool, algorithms.Distilled))
        return self.made.setdefault(kind, jax.jit(run))(theta, pool, key)

    def features(self, body, pool):
        """A pool of features; the embedding is not adapted, so once is enough."""
        inputs = pool.outer.pool.inputs
        flat = self.embed(body, inputs.reshape(-1, *inputs.shape[2:]))
        return tasks.episodes(data.ClassPool(flat.reshape(*inputs.shape[:2], -1)))

    def read(self, pool, seed: int, *, simple: bool = False) -> dict:
        """1- and 5-shot accuracy of features read in several ways, on the same episodes."""

        def scores(pool, key):
            shape, rows = pool.outer.pool.inputs.shape, {}
            for shots in (1, 5):
                flat, _ = feature_family(shape, shots, unit=False)
                sphere, unit = feature_family(shape, shots, unit=True)
                convex = algorithms.good_embedding(sphere, same, num_classes=1)
                whole = algorithms.transductive(sphere, unit)
                readers = {
                    "prototypes": (flat, algorithms.prototypes(flat, same).adapt, ()),
                    "unit prototypes": (sphere, algorithms.prototypes(sphere, unit).adapt, ()),
                    "transductive": (whole.family, whole.adapt, ()),
                    "logistic regression": (sphere, convex.adapt, tasks.Embedded((), None)),
                }
                for name in list(readers)[: 1 if simple else 4]:
                    family, adapt, theta = readers[name]
                    run = algorithms.few_shot_scores(family, adapt, num_tasks=self.cfg.episodes)
                    found = run(theta, pool, jax.random.clone(key))
                    rows[f"{name}, {shots}"] = found.aux.accuracy.mean()
            return rows

        run = self.made.setdefault(("read", simple), jax.jit(scores))
        return {k: float(x) for k, x in run(pool, jax.random.key(1000 + seed)).items()}

    def fine_tuned(self, theta, pools, seed: int) -> dict:
        """1-shot accuracy after fine-tuning, at the rate that is best on five validation tasks."""
        family, count = self.family(part=1), self.cfg.tuned_episodes

        def score(rate, theta, pool, key):
            tuned = algorithms.finetune_prototypes(
                family, self.embed, optax.sgd(rate), augment=augment
            )
            scores = algorithms.few_shot_scores(
                family, tuned.adapt, num_tasks=count, tasks_at_once=5
            )
            return scores(theta, pool, key).aux.accuracy

        run = self.made.setdefault("fine-tuning", jax.jit(score))
        by_rate = [run(x, theta, pools[1], jax.random.key(2000 + seed))[:5] for x in RATES]
        best = RATES[int(np.argmax([x.mean() for x in by_rate]))]
        found = {
            name: float(run(rate, theta, pools[2], jax.random.key(3000 + seed)).mean())
            for name, rate in (("tuned", best), ("not tuned", 0.0))
        }
        return found | {"rate": best, "validation": [float(x.mean()) for x in by_rate]}


def one_seed(bench: Bench, seed: int) -> dict:
    """All trainings and readings."""
    key_init, key_random, *keys = jax.random.split(jax.random.key(100 + seed), 7)
    parts = pools(bench.cfg, seed)
    base, _, novel = parts
    start = bench.learner("good embedding").init(key_init)
    teacher = bench.fit("good embedding", start, base, keys[0])
    student = bench.fit("good embedding", start, algorithms.Distilled(base, teacher), keys[1])
    unlabelled = bench.fit("ProtoTransfer", start.body, base, keys[2])
    both = bench.fit("prototypes", unlabelled, base, keys[4])
    trained = {
        "random network": bench.init(key_random),
        "prototypes": bench.fit("prototypes", start.body, base, keys[3]),
        "good embedding": teacher.body,
        "good embedding, distilled": student.body,
        "ProtoTransfer, no labels": unlabelled,
        "ProtoTransfer, then prototypes": both,
    }
    rows = {name: bench.read(bench.features(x, novel), seed) for name, x in trained.items()}
    rows["raw pixels"] = bench.read(novel, seed, simple=True)
    tuned = bench.fine_tuned(both, parts, seed)
    return {"accuracy": rows, "fine-tuning": tuned, "bars": bars(rows, tuned)}


def bars(rows: dict, tuned: dict) -> dict:
    """Differences at one shot, in points, and how well two readers agree on the trainings."""
    proto, convex = "prototypes, 1", "logistic regression, 1"
    good, meta, free = rows["good embedding"], rows["prototypes"], rows["ProtoTransfer, no labels"]
    points = {
        "good embedding - prototypes": good[convex] - meta[proto],
        "the same, both read by prototypes": good["unit prototypes, 1"] - meta[proto],
        "distilled - teacher": rows["good embedding, distilled"][convex] - good[convex],
        "transductive - nearest prototype": good["transductive, 1"] - good["unit prototypes, 1"],
        "ProtoTransfer - raw pixels": free[proto] - rows["raw pixels"][proto],
        "meta-trained - pre-trained": rows["ProtoTransfer, then prototypes"][proto] - free[proto],
        "fine-tuned - meta-trained": tuned["tuned"] - tuned["not tuned"],
    }
    columns = [[x[reader] for x in (good, meta, free)] for reader in (proto, convex)]
    order = [np.sign(np.subtract.outer(c, c)[np.triu_indices(3, 1)]) for c in columns]
    found = {name: round(100 * value, 2) for name, value in points.items()}
    return found | {"Kendall's tau of two readers": float(np.mean(order[0] * order[1]))}


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    start, busy = time.perf_counter(), time.process_time()
    bench, results = Bench(config), {}
    for seed in config.seeds:
        results[str(seed)] = one_seed(bench, seed)
        print(f"seed {seed}: {results[str(seed)]['bars']}", flush=True)
    record = {
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k != "out"},
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - busy, 1),
        "results": results,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    train.write_json(config.out, record)
    _figure(record, config.out)
    return record


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    seeds = [x["accuracy"] for x in record["results"].values()]
    names = [name for name in seeds[0] if name != "raw pixels"]
    canvas = Figure(figsize=(7, 3.4), layout="constrained")
    axes = canvas.subplots()
    for offset, reader in enumerate(x for x in seeds[0][names[0]] if x.endswith("1")):
        values = np.array([[seed[name][reader] for name in names] for seed in seeds])
        place = np.arange(len(names)) + 0.15 * (offset - 1.5)
        spread = np.abs(np.stack([values.min(0), values.max(0)]) - values.mean(0))
        axes.errorbar(values.mean(0), place, xerr=spread, fmt="o", ms=4, label=reader[:-3])
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="1-shot accuracy on new characters")
    axes.legend(frameon=False, fontsize="small", title="read by")
    for suffix in (".png", ".svg"):
        canvas.savefig(path.with_suffix(suffix), dpi=160)


if __name__ == "__main__":
    main(tyro.cli(Config))
