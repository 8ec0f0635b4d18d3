"""Which meta-gradient suits a problem: a calm one, a network, and a chaotic one.

Command:   python experiments/diagnose.py
Hardware:  two cores of an x86-64 CPU: eight minutes of their time, most of it compilation.
Expected:  quadratics: exact derivatives have the least variance per second at every horizon, and
           truncated backpropagation is biased. Digits: the same, with a small Lyapunov exponent.
           Double well, with steps so large that descent is chaotic: the variance of
           backpropagation grows exponentially with the horizon, that of evolution strategies does
           not, and the slices of the meta-loss are rough.

Bias, variance and variance per second of four estimators against the horizon, the growth of small
differences, and slices of the meta-loss. Writes results/diagnose.json, a summary figure beside it,
and a figure for each problem.
"""

import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from metaopt import core, data, doctor, eval, learned, tasks, train

HERE = pathlib.Path(__file__).parent
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    problems: tuple[str, ...] = ("quadratic", "digits", "double well")
    estimators: tuple[str, ...] = ("backprop", "truncated_backprop", "es", "pes")
    horizons: tuple[int, ...] | None = None
    """Inner steps of trajectories; those of each problem if not given."""
    num_samples: int = 24
    num_reference: int = 48
    num_points: int = 201
    seed: int = 0
    out: pathlib.Path = HERE / "results" / "diagnose.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls(("quadratic", "double well"), ("backprop", "pes"), (2, 4), 4, 4, 5,
                   out=folder / "tiny.json")  # fmt: skip


class Problem(NamedTuple):
    """What `eval.diagnose` needs, besides estimators."""

    system: core.System
    theta: Any
    data: Any
    sigma: float
    num_tasks: int
    horizons: tuple[int, ...]


def main(config: Config) -> dict:
    """Measures everything, writes the results and returns them."""
    doctor.guard_cpu()
    doctor.enable_compilation_cache()
    record = train.Record(config)
    results = {}
    for name in config.problems:
        start = time.perf_counter()
        problem = PROBLEMS[name]()
        make = eval.standard_estimators(
            problem.system, config.estimators, sigma=problem.sigma, num_tasks=problem.num_tasks
        )
        diagnosis = eval.diagnose(
            problem.system,
            make,
            problem.theta,
            problem.data,
            jax.random.key(config.seed),
            horizons=config.horizons or problem.horizons,
            num_samples=config.num_samples,
            sigma=problem.sigma,
            num_reference=config.num_reference,
            num_tasks=problem.num_tasks,
            num_points=config.num_points,
            on_report=lambda text, name=name: print(f"{name}, {text}", flush=True),
        )
        results[name] = {
            "seconds": time.perf_counter() - start,
            **_rounded(eval.to_json(diagnosis)),
        }
        print("\n".join(results[name]["recommendation"]), flush=True)
    found = record.write({"results": results})
    draw(found, config.out)
    return found


def quadratic() -> Problem:
    """Gradient descent with momentum on quadratics; theta is learning rate and momentum."""
    optimizer = learned.hyperparameters(
        optax.sgd, learning_rate=learned.positive(0.1), momentum=learned.fraction(0.5)
    )
    system = core.training(tasks.quadratic(dim=10), optimizer)
    return Problem(system, optimizer.init(jax.random.key(0)), (), 0.1, 8, (5, 20, 80))


def digits() -> Problem:
    """A network on digits, trained by an untrained Celo2 rule."""
    pool = data.digits().train
    family = tasks.mlp(pool.inputs.shape[1:], 10, hidden=(16,), batch_size=16)
    optimizer = learned.celo2(0.02)
    system = core.training(family, optimizer)
    return Problem(system, optimizer.init(jax.random.key(0)), pool, 0.01, 4, (10, 50))


def double_well() -> Problem:
    """Gradient descent on ¼ Σ (x² − 1)² with a step size per coordinate, exp(theta), of 1.8.

    Each coordinate follows the cubic map x ← (1 + s) x − s x³, chaotic for steps s near 2.
    """

    class State(NamedTuple):
        params: jax.Array

    def init(theta, data, key, *, num_steps=None):
        return State(jax.random.uniform(key, theta.shape, theta.dtype, -1.0, 1.0))

    def step(theta, state, data, key):
        x = state.params
        x = x - jnp.exp(theta) * (x**3 - x)
        loss = 0.25 * jnp.sum((x**2 - 1) ** 2)
        return State(x), core.StepInfo(loss, jnp.array(False))

    theta = jnp.log(jnp.array([1.8, 1.75]))
    return Problem(core.System(init, step), theta, (), 0.02, 8, (4, 12, 36))


PROBLEMS = {"quadratic": quadratic, "digits": digits, "double well": double_well}


def _rounded(value: Any) -> Any:
    """Floats with seven digits: the rest is noise and makes a large file."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def draw(record: dict, path: pathlib.Path) -> None:
    """All figures, from what was written: one per problem, and the summary."""
    for name, result in record["results"].items():
        figure = path.with_name(f"{path.stem}-{name.replace(' ', '-')}")
        eval.figure(result, figure, title=name)
    _summary(record, path)


def _summary(record: dict, path: pathlib.Path) -> None:
    """Variance per second against the horizon, one panel per problem."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9.5, 3.4), layout="constrained")
    panels = canvas.subplots(1, len(record["results"]), squeeze=False)[0]
    for axes, (name, result) in zip(panels, record["results"].items(), strict=True):
        for index, estimator in enumerate(record["config"]["estimators"]):
            rows = [r for r in result["estimators"] if r["name"] == estimator]
            points = [(r["horizon"], r["cost"]) for r in rows if r["cost"]]
            biased = [
                r["bias"]["significant"] and r["bias"]["magnitude"] > 0.1 for r in rows if r["cost"]
            ]
            if not points:
                continue
            horizons, costs = zip(*points, strict=True)
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(horizons, costs, color=colour, label=estimator)
            for x, y, hollow in zip(horizons, costs, biased, strict=True):
                axes.plot(x, y, "o", color=colour, markerfacecolor="white" if hollow else colour)
        axes.set(xscale="log", yscale="log", title=name)
        levels = [(h["horizon"], h["exponent"]) for h in result["horizons"]]
        labels = [f"{horizon}\nλT = {horizon * rate:.1f}" for horizon, rate in levels]
        axes.set_xticks([horizon for horizon, _ in levels], labels)
        axes.minorticks_off()
        axes.set_xlabel("horizon T")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("relative variance × seconds\n(hollow: biased by over a tenth)")
    canvas.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False
    )
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
