"""When MAML pays: where hard tasks are close together, and far from the easy ones.

Command:   python experiments/task_landscape.py
Hardware:  one core of an x86-64 CPU; ten seconds.
Expected:  excess after one step of the no-adaptation minimiser over MAML's: at least 3 and 5 where
           hard tasks are close together at distance 5 and 10 from the easy ones, at most 1.2 where
           they are among them or spread as widely as they are far; the library's MAML within 1 % of
           the closed form

Quadratic tasks ½ b |w - c|² in ten dimensions (Collins et al. 2022, arXiv:2010.14672): 100 easy
ones, b = 1, around the origin with deviation 0.5, and 100 hard ones, b = 0.1, around a point at
distance R with deviation s. One step of size a = 0.9 leaves ½ b (1 - ab)² |w - c|², so that MAML's
minimiser weighs optima by b (1 - ab)², which favours hard tasks, and training without adaptation
weighs them by b. The library's `maml` descends by SGD with an average over the second half of its
600 steps; with an inner step of size 0 it is training without adaptation.

Writes results/task_landscape.json and a figure beside it.
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

from metaopt import algorithms, core, eval, train  # noqa: E402

INNER_RATE = 0.9
BARS = {"0, 0.5": ("at most", 1.2), "5, 0.5": ("at least", 3.0), "5, 5": ("at most", 1.2),
        "10, 0.5": ("at least", 5.0)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    cases: tuple[tuple[float, float], ...] = ((0, 0.5), (5, 0.5), (5, 5), (10, 0.5))
    """Distance R of the hard tasks and their spread s."""
    per_group: int = 100
    """Easy tasks, and hard ones."""
    steps: int = 600
    """Outer steps of the library's learner."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "task_landscape.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0,), ((0, 0.5), (5, 0.5)), 4, 5, folder / "tiny.json")


def make_tasks(config: Config, distance: float, spread: float, seed: int):
    """Curvatures [tasks] and optima [tasks, 10]."""
    rng, shape = np.random.default_rng(seed), (config.per_group, 10)
    easy = 0.5 * rng.normal(size=shape)
    direction = rng.normal(size=10)
    hard = distance * direction / np.linalg.norm(direction) + spread * rng.normal(size=shape)
    return np.repeat([1.0, 0.1], config.per_group), np.concatenate([easy, hard])


def quadratics(num_tasks: int) -> core.TaskFamily:
    """Tasks numbered in `data`; support and query loss are the same."""

    def loss(params, index, batch, key):
        curvature, optimum = batch
        return 0.5 * curvature * jnp.sum((params - optimum) ** 2), ()

    return core.TaskFamily(
        sample=lambda key: jax.random.randint(key, (), 0, num_tasks),
        init=lambda index, key: jnp.zeros(10),
        batch=lambda data, index, key: jax.tree.map(lambda x: x[index], data),
        loss=loss,
    )


def minimiser(curvature, optima, inner_rate):
    """The closed form: optima weighed by what a step leaves of their curvature."""
    weights = curvature * (1 - inner_rate * curvature) ** 2
    return weights @ optima / weights.sum()


def excess(point, curvature, optima):
    """Mean loss after one step."""
    weights = curvature * (1 - INNER_RATE * curvature) ** 2
    return np.mean(0.5 * weights * np.sum((point - optima) ** 2, axis=1))


def descend(config: Config, inner_rate: float, outer_rate: float):
    """`(data, key) -> theta`, by the library's learner."""
    num_tasks = 2 * config.per_group
    learner = algorithms.maml(
        quadratics(num_tasks), optax.sgd(inner_rate), num_steps=1, num_tasks=num_tasks
    )

    def run(data, key):
        def step(theta, index):
            key_step = jax.random.fold_in(key, index)
            estimate, _ = learner.estimator.estimate(theta, (), data, key_step)
            theta = theta - outer_rate * estimate.grad
            return theta, theta

        _, path = jax.lax.scan(step, jnp.zeros(10), jnp.arange(config.steps))
        return jnp.mean(path[config.steps // 2 :], axis=0)

    return run


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    problems = {
        (case, seed): make_tasks(config, *case, seed)
        for case in config.cases
        for seed in config.seeds
    }
    pools = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *problems.values())
    keys = jax.random.split(jax.random.key(0), len(problems))
    # Outer steps are of the order of the inverse mean curvature of each meta-loss.
    ours = {
        name: np.asarray(jax.jit(jax.vmap(descend(config, rate, outer)))(pools, keys))
        for name, rate, outer in (("MAML", INNER_RATE, 5.0), ("no adaptation", 0.0, 0.5))
    }
    results = {}
    for case in config.cases:
        rows = [index for index, (c, _) in enumerate(problems) if c == case]
        found = []
        for row in rows:
            tasks = list(problems.values())[row]
            closed = {
                "MAML": excess(minimiser(*tasks, INNER_RATE), *tasks),
                "no adaptation": excess(minimiser(*tasks, 0.0), *tasks),
            }
            entry = {f"{name}, closed form": float(value) for name, value in closed.items()}
            for name, points in ours.items():
                entry[f"{name}, library"] = float(excess(points[row], *tasks))
            entry["ratio"] = entry["no adaptation, closed form"] / entry["MAML, closed form"]
            entry["library over closed form"] = entry["MAML, library"] / entry["MAML, closed form"]
            found.append(entry)
        results[", ".join(f"{x:g}" for x in case)] = {
            name: [entry[name] for entry in found] for name in found[0]
        }
    found = record.write(
        {
            "bars on the ratio": {case: BARS[case] for case in results},
            "results": results,
        }
    )
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5, 3), layout="constrained")
    axes = canvas.subplots()
    names = list(record["results"])
    for index, name in enumerate(names):
        values = record["results"][name]["ratio"]
        axes.plot([index] * len(values), values, "o", color="C0", alpha=0.6)
        side, bar = record["bars on the ratio"][name]
        axes.plot([index - 0.3, index + 0.3], [bar, bar], color="grey", lw=1)
        axes.annotate(side, (index + 0.32, bar), fontsize="x-small", color="grey", va="center")
    axes.set(yscale="log", ylabel="excess, ratio to MAML", xlim=(-0.5, len(names)),
             xlabel="distance of the hard tasks, their spread")  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
