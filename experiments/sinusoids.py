"""Few-shot sinusoids: what each way of adapting by gradient steps reaches.

Command:   python experiments/sinusoids.py
Hardware:  one core of an x86-64 CPU; five minutes of process time, most of it compilation.
Expected:  mean squared error after five steps, mean over tasks and seeds, at most:
           MAML 0.25 and a fifth of pretraining's; first-order MAML 0.8; Reptile 0.6;
           ANIL 0.6 in 0.7 of MAML's time; BOIL 0.3; Meta-SGD 0.13 and 0.8 of MAML's;
           MAML++ 0.15 and 0.9 of MAML's; Meta-Curvature 0.03 and a fifth of MAML's

Finn et al. 2017, arXiv:1703.03400, §5.1: y = A sin(x - φ), A in [0.1, 5], φ in [0, π], x in
[-5, 5], a network 1-40-40-1. Ten support and ten query points, Reptile and pretraining 20 of one
kind; five inner steps of rate 0.01 (Reptile ten); 16 tasks per update; Adam 1e-3 on meta-gradients
clipped at norm 10. Weights start as N(0, 0.1²): with the usual variances the inner steps diverge.
All are tested on the same 400 tasks of 50 query points. Differs from the paper: fewer updates, and
more query points at test time.

Every method trains for all seeds at once, vectorised. Writes results/sinusoids.json and a figure.
"""

import dataclasses
import os
import pathlib
import time

from metaopt import doctor

doctor.guard_cpu()
# One thread: process time then is the time of one core, whatever else the machine does.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, core, eval, tasks, train, tree  # noqa: E402

SUPPORT, QUERY, TEST_QUERY = 10, 10, 50

METHODS = (
    "pretraining", "Reptile", "first-order MAML", "ANIL", "MAML", "BOIL", "MAML++", "Meta-SGD",
    "Meta-Curvature",
)  # fmt: skip
# One step of inner training is joint training.
TRAINED_WITH = {"pretraining": 1, "Reptile": 10}

BARS = (
    # method, measure, at most
    ("MAML", "error", 0.25),
    ("MAML", "ratio to pretraining", 0.2),
    ("first-order MAML", "error", 0.8),
    ("Reptile", "error", 0.6),
    ("ANIL", "error", 0.6),
    ("ANIL", "time over MAML", 0.7),
    ("BOIL", "error", 0.3),
    ("Meta-SGD", "error", 0.13),
    ("Meta-SGD", "ratio to MAML", 0.8),
    ("MAML++", "error", 0.15),
    ("MAML++", "ratio to MAML", 0.9),
    ("Meta-Curvature", "error", 0.03),
    ("Meta-Curvature", "ratio to MAML", 0.2),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = METHODS
    num_updates: int = 5000
    num_tasks: int = 16
    num_test_tasks: int = 400
    steps: tuple[int, ...] = (0, 1, 2, 5, 10)
    """Adaptation steps at test time."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "sinusoids.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute: compilation."""
        methods = ("pretraining", "MAML", "MAML++")
        return cls((0,), methods, 2, 2, 3, (0, 5), folder / "tiny.json")


def sinusoids() -> core.TaskFamily:
    """The family; a batch has as many points as its pool, a placeholder, has rows."""
    family = tasks.sinusoid_regression()

    def init(task_params, key):
        key_params, key_noise = jax.random.split(key)
        params = family.init(task_params, key_params)
        drawn = tree.sample_normal(params, key_noise)
        pairs = zip(params, drawn, strict=True)
        return tuple({"w": 0.1 * noise["w"], "b": layer["b"]} for layer, noise in pairs)

    def batch(data, task_params, key):
        return tasks.sinusoid_regression(batch_size=len(data)).batch((), task_params, key)

    return family._replace(init=init, batch=batch, normalise=core.keep_finite)


def points(support: int, query: int) -> core.Split:
    """The placeholders."""
    return core.Split(jnp.zeros(support), jnp.zeros(query))


def learner_of(cfg: Config, name: str, num_steps: int) -> algorithms.MetaLearner:
    """A method that adapts by so many steps."""
    family, sgd = sinusoids(), optax.sgd(0.01)
    fading = max(1, round(0.3 * cfg.num_updates))
    make = {
        "pretraining": lambda **k: algorithms.reptile(family, sgd, **k),
        "Reptile": lambda **k: algorithms.reptile(family, sgd, **k),
        "first-order MAML": lambda **k: algorithms.maml(family, sgd, gradient="first_order", **k),
        "ANIL": lambda **k: algorithms.anil(family, sgd, **k),
        "MAML": lambda **k: algorithms.maml(family, sgd, **k),
        "BOIL": lambda **k: algorithms.boil(family, sgd, **k),
        "MAML++": lambda **k: algorithms.maml_plus_plus(family, fading=fading, **k),
        "Meta-SGD": lambda **k: algorithms.meta_sgd(family, **k),
        "Meta-Curvature": lambda **k: algorithms.meta_curvature(family, sgd, **k),
    }
    return make[name](num_steps=num_steps, num_tasks=cfg.num_tasks)


def meta_train(cfg: Config, name: str):
    """Theta of every seed, and milliseconds of a meta-step of one seed."""
    learner = learner_of(cfg, name, TRAINED_WITH.get(name, 5))
    has_query = name not in ("pretraining", "Reptile")
    data = points(SUPPORT, QUERY) if has_query else points(SUPPORT + QUERY, 1)
    outer_opt = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))

    def one_seed(key, data):
        key_theta, key_state, key_updates = jax.random.split(key, 3)
        theta = learner.init(key_theta)
        state = learner.estimator.init(theta, data, key_state)

        def update(carry, key_data):
            theta, state, opt_state = carry
            key = jax.random.wrap_key_data(key_data)
            estimate, state = learner.estimator.estimate(theta, state, data, key)
            updates, opt_state = outer_opt.update(estimate.grad, opt_state, theta)
            return (optax.apply_updates(theta, updates), state, opt_state), None

        carry = (theta, state, outer_opt.init(theta))
        # As raw numbers: moving axes of a batch of keys counts as using them.
        keys = jax.random.key_data(jax.random.split(key_updates, cfg.num_updates))
        return jax.lax.scan(update, carry, keys)[0][0]

    keys = jnp.stack([jax.random.key(seed) for seed in cfg.seeds])
    compiled = jax.jit(jax.vmap(one_seed, in_axes=(0, None))).lower(keys, data).compile()
    start = time.process_time()
    theta = jax.block_until_ready(compiled(keys, data))
    spent = time.process_time() - start
    return theta, 1e3 * spent / cfg.num_updates / len(cfg.seeds)


def test_errors(cfg: Config, name: str, theta) -> dict[str, np.ndarray]:
    """Squared errors [seed, task] by adaptation steps; all methods see the same tasks."""

    def errors(theta, data, key):
        found = {}
        for num_steps in cfg.steps:
            adapt = learner_of(cfg, name, num_steps).adapt if num_steps else start
            scores = algorithms.few_shot_scores(sinusoids(), adapt, num_tasks=cfg.num_test_tasks)
            found[str(num_steps)] = scores(theta, data, jax.random.clone(key)).loss
        return found

    # One program for all: the tasks are drawn once, and compilation is what takes the time.
    run = jax.jit(jax.vmap(errors, in_axes=(0, None, None)))
    found = run(theta, points(SUPPORT, TEST_QUERY), jax.random.key(1000))
    # Compiled functions sort the names of what they return.
    return {str(steps): np.asarray(found[str(steps)], float) for steps in cfg.steps}


def start(theta, task_params, support, key):
    """Parameters that are not adapted."""
    del task_params, support, key
    return getattr(theta, "params", theta)


def judge(results: dict) -> list[dict]:
    """What the bars ask for beside what was reached, means over seeds."""

    def mean(name, measure):
        if measure == "error":
            return float(np.mean(results[name]["mean"]["5"]))
        if measure == "time over MAML":
            return results[name]["ms"] / results["MAML"]["ms"]
        reference = "pretraining" if measure.endswith("pretraining") else "MAML"
        return mean(name, "error") / mean(reference, "error")

    rows = [(name, what, bar, mean(name, what)) for name, what, bar in BARS if name in results]
    return [
        {"method": name, "measure": what, "bar": bar, "reached": found, "met": bool(found <= bar)}
        for name, what, bar, found in rows
    ]


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    results = {}
    for name in config.methods:
        theta, milliseconds = meta_train(config, name)
        errors = test_errors(config, name, theta)
        results[name] = {
            "mean": {k: x.mean(axis=1).tolist() for k, x in errors.items()},
            "median": {k: np.median(x, axis=1).tolist() for k, x in errors.items()},
            "standard error over tasks": {
                k: (x.std(axis=1, ddof=1) / np.sqrt(x.shape[1])).tolist() for k, x in errors.items()
            },
            "ms": milliseconds,
        }
        print(f"{name:18s} {np.mean(errors['5']):.4f} {milliseconds:.2f} ms", flush=True)
    found = record.write({"bars": judge(results), "results": results})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6, 4), layout="constrained")
    axes = canvas.subplots()
    for index, (name, entry) in enumerate(record["results"].items()):
        steps = [int(k) for k in entry["mean"]]
        values = np.array(list(entry["mean"].values()))
        low, high, color = values.min(axis=1), values.max(axis=1), f"C{index}"
        axes.plot(steps, values.mean(axis=1), marker="o", markersize=3, label=name, color=color)
        axes.fill_between(steps, low, high, alpha=0.2, lw=0, color=color)
    axes.set(yscale="log", xlabel="adaptation steps", ylabel="mean squared error of 400 tasks")
    axes.legend(frameon=False, fontsize="x-small", ncols=2)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
