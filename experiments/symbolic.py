"""A symbolic update rule by regularised evolution from SGD, and what it is worth elsewhere.

Command:   python experiments/symbolic.py
Hardware:  two cores of an x86-64 CPU; three minutes of process time, half a minute a search.
Expected:  search   score 0.72 to 0.82 against 1.44 for SGD, three of five children or more skipped
                    because they do what a known program did
           compare  on new runs, each rule tuned: 38 to 44 % below SGD, from 6 % below to 4 % above
                    Adam; on a deeper net 26 to 34 % below SGD, 15 % or more above Adam; on other
                    data 5 to 12 % above SGD

The search (Chen et al. 2023, arXiv:2302.06675, at 1,500 programs where they trained many more):
population 64, tournament 16; a program's score is the training loss of a small network on digits,
averaged over 60 steps and two runs, at the best of three learning rates. Of its best eight
programs the one with the lowest loss on other runs, over a grid of learning rates, is kept. It
and known rules then get a learning rate each on every problem, chosen on five runs and reported on
ten others: on the problem of the search, and on two that the search never saw. `adam` corrects
its bias, as in optax.

Writes results/symbolic.json and a figure beside it.
"""

import dataclasses
import pathlib
import time

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()  # the same programs serve every search

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, data, eval, learned, tasks, train  # noqa: E402

KNOWN = ("sgd", "momentum", "lion")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of searches."""
    num_evaluations: int = 1500
    population: int = 64
    tournament: int = 16
    length: int = 12
    """Statements of a program, at most."""
    learning_rates: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Of the search."""
    num_steps: int = 60
    long_steps: int = 150
    grid: tuple[float, ...] = eval.log_grid(-4, 1)
    """Learning rates of the comparison."""
    tuning_runs: int = 5
    test_runs: int = 10
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "symbolic.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls((0,), 20, 8, 2, 4, (0.1,), 3, 4, (0.1, 1.0), 1, 2, folder / "tiny.json")


def bounded(family):
    """Counts parameters beyond 30 as divergence.

    Evolution finds that logits of 10^9 round the cross-entropy to 0, whatever the label.
    """

    def loss(params, task_params, batch, key):
        value, aux = family.loss(params, task_params, batch, key)
        largest = jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(params)]).max()
        return jnp.where(largest > 30, jnp.nan, value), aux

    return family._replace(loss=loss)


def problems(config: Config) -> dict:
    """Family, pool and steps; the first is that of the search."""
    digits = data.digits().train
    shape, classes = digits.inputs.shape[1:], 10
    teacher = data.teacher_network(
        jax.random.key(0), num_classes=5, dim=16, num_examples=2000, hidden=(32,)
    )
    small = tasks.mlp(shape, classes, hidden=(16,), batch_size=32)
    deep = tasks.mlp(shape, classes, hidden=(32, 32), activation="tanh", batch_size=32)
    other = tasks.mlp((16,), 5, hidden=(16,), batch_size=32)
    small, deep, other = (bounded(family) for family in (small, deep, other))
    return {
        "digits, 16 hidden units": (small, digits, config.num_steps),
        "digits, two tanh layers, long": (deep, digits, config.long_steps),
        "teacher network, 16 hidden units": (other, teacher, config.num_steps),
    }


def losses(problem, make, grid, pool, key, num_runs):
    """Mean training losses `[grid, runs]`, and final ones, of `make(learning_rate)`."""
    family, _, num_steps = problem

    def at(learning_rate):
        curves = eval.learning_curve(
            family, make(learning_rate), pool, key, num_steps=num_steps, num_seeds=num_runs,
            num_eval_batches=8,
        )  # fmt: skip
        return curves.normalised.train.mean(axis=1), curves.normalised.final

    return jax.vmap(at)(jnp.asarray(grid))


def of_program(program):
    """The optimizer that a program is, as a function of its learning rate."""

    def make(learning_rate):
        learned_optimizer = learned.symbolic(program, learning_rate=learning_rate)
        return learned_optimizer.optimizer(program.constants)

    return make


def search(config: Config, problem, seed: int) -> algorithms.EvolutionResult:
    """One search."""

    def evaluate(program, pool):
        key = jax.random.key(1)
        found, _ = losses(problem, of_program(program), config.learning_rates, pool, key, 2)
        return jnp.min(found.mean(axis=1))

    return algorithms.evolve(
        evaluate,
        learned.program("sgd", length=config.length),
        problem[1],
        jax.random.key(seed),
        population=config.population,
        tournament=config.tournament,
        num_evaluations=config.num_evaluations,
        num_ranked=8,
    )


def stack(programs):
    """One program with a leading axis."""
    return learned.Program(
        jnp.stack([x.code for x in programs]),
        jnp.stack([jnp.asarray(x.constants, float) for x in programs]),
    )


def sweep(config: Config, problem, programs) -> tuple:
    """Losses of programs and of Adam: tuning and test runs, `[contenders, grid, runs]`."""

    @jax.jit
    def run(programs, pool):
        def both(make):
            return [
                losses(problem, make, config.grid, pool, jax.random.key(seed), num_runs)
                for seed, num_runs in ((2, config.tuning_runs), (3, config.test_runs))
            ]

        found = jax.lax.map(lambda program: both(of_program(program)), programs)
        adam = both(optax.adam)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), found, adam)

    return jax.tree.map(lambda x: np.asarray(x, np.float64), run(stack(programs), problem[1]))


def compare(config: Config, programs: dict) -> dict:
    """Every rule on every problem, at the learning rate that is best for it on tuning runs."""
    table = {}
    for label, problem in problems(config).items():
        (tuning, _), (mean, final) = sweep(config, problem, list(programs.values()))
        table[label] = {}
        for index, name in enumerate([*programs, "adam"]):
            best = int(np.argmin(tuning[index].mean(axis=1)))
            runs = mean[index, best]
            table[label][name] = {
                "learning_rate": config.grid[best],
                "at_edge": best in (0, len(config.grid) - 1),
                "mean loss": runs.mean(),
                "standard error": runs.std(ddof=1) / len(runs) ** 0.5,
                "final loss": final[index, best].mean(),
            }
        for entry in table[label].values():
            for base in ("sgd", "adam"):
                entry[f"ratio to {base}"] = entry["mean loss"] / table[label][base]["mean loss"]
    return table


def choose(config: Config, problem, ranking) -> int:
    """The last stage of the funnel: which of the best programs is best on other runs."""

    @jax.jit
    def run(programs, pool):
        def one(program):
            key = jax.random.key(4)
            found, _ = losses(
                problem, of_program(program), config.grid, pool, key, config.tuning_runs
            )
            return jnp.min(found.mean(axis=1))

        return jax.lax.map(one, programs)

    return int(jnp.argmin(run(stack([program for program, _ in ranking]), problem[1])))


def main(config: Config) -> dict:
    """Searches, compares, writes the results and returns them."""
    record = train.Record(config)
    problem = next(iter(problems(config).values()))
    programs = {name: learned.program(name, length=config.length) for name in KNOWN}
    searches = {}
    for seed in config.seeds:
        clock = time.perf_counter(), time.process_time()
        found = search(config, problem, seed)
        seconds = time.perf_counter() - clock[0], time.process_time() - clock[1]
        kept = choose(config, problem, found.ranking)
        programs[f"found {seed}"] = found.ranking[kept][0]
        counts = found.counts._asdict()
        searches[str(seed)] = {
            "program": str(found.ranking[kept][0]).splitlines(),
            "rank": kept,
            "score": found.ranking[kept][1],
            "score of sgd": float(found.best_scores[0]),
            "best score": found.score,
            "best_scores": [float(f"{x:.5g}") for x in found.best_scores],
            "counts": counts,
            "skipped": 1 - counts["evaluated"] / counts["proposed"],
            "duplicates": counts["duplicates"] / counts["proposed"],
            "seconds": round(seconds[0], 1),
            "process seconds": round(seconds[1], 1),
        }
        print(seed, {k: v for k, v in searches[str(seed)].items() if k != "best_scores"})
    found = record.write({"searches": searches, "comparison": compare(config, programs)})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(1, 1.4))
    for seed, found in record["searches"].items():
        left.plot(found["best_scores"], label=f"search {seed}")
    left.set(xlabel="programs trained with", ylabel="best score: mean training loss")
    left.legend(frameon=False, fontsize="small")
    comparison = record["comparison"]
    names = [name for name in next(iter(comparison.values())) if name != "sgd"]
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        ratios = [entry[name]["ratio to sgd"] for entry in comparison.values()]
        places = np.arange(len(ratios)) + width * (index - (len(names) - 1) / 2)
        right.bar(places, ratios, width, label=name)
    right.axhline(1, color="black", linewidth=0.8)
    right.set_xticks(range(len(comparison)), [x.replace(", ", ",\n") for x in comparison])
    right.set(ylabel="mean loss over SGD's, each tuned")
    right.legend(frameon=False, fontsize="small", ncols=2)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
