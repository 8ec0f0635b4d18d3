"""Learning to learn by gradient descent: an LSTM for random quadratics against tuned optimizers.

Command:   python experiments/l2l.py            (--outer-steps 50 for a look)
Hardware:  one core of an x86-64 CPU; four minutes of process time per meta-seed.
Expected:  mean log10 f after 100 steps 0.2, 0.5 and 0.5 below the best baseline for three
           meta-seeds, and f below that baseline's on 81 to 88 % of 64 held-out functions; after 300
           steps, three times what it was meta-trained on, well above Adam's

Andrychowicz et al. 2016, arXiv:1606.04474, §3.1: f(x) = |W x - y|^2, 10 variables, all numbers
normal. The coordinate-wise LSTM (two layers of 20) is trained by truncated backpropagation without
second derivatives, 20 of 100 steps at a time, on 128 functions per outer step, by Adam. Differs
from the paper: the meta-loss is the logarithm of f, so that functions count alike however well they
are conditioned; gradients enter as logarithm and sign; the outer learning rate decays; each
function is at its own phase of the 100 steps. The weights with the best probe are kept, on
functions of their own.

Baselines: SGD, SGD with Nesterov momentum 0.9, RMSprop, Adam, constant learning rates from
half-decades 1e-4 to 1e1, each chosen by mean log10 f(x_100) on 64 functions that no report uses.

Writes results/l2l.json and a figure beside it.
"""

import dataclasses
import pathlib
import time

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()  # the same programs serve all meta-seeds

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import core, estimators, eval, learned, tasks, train  # noqa: E402

# Below this, float32 rounding is all that is left.
FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Meta-seeds. The first one also draws the functions of tuning and of the comparison."""
    dim: int = 10
    num_steps: int = 100
    """Inner steps of a training: of meta-training, and of the comparison."""
    longer: int = 300
    """Inner steps of a second comparison, beyond what was meta-trained."""
    truncation: int = 20
    num_tasks: int = 128
    outer_steps: int = 1500
    learning_rate: float = 3e-3
    probe_every: int = 100
    output_scale: float = 0.1
    loss_floor: float = 1e-8
    """Added to f before the logarithm of the meta-loss."""
    num_functions: int = 64
    grid: tuple[float, ...] = eval.log_grid(-4, 1)
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "l2l.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls(
            seeds=(0, 1),
            num_steps=4,
            longer=6,
            truncation=2,
            num_tasks=2,
            outer_steps=2,
            probe_every=1,
            num_functions=2,
            grid=(0.01, 0.1),
            out=folder / "tiny.json",
        )


BASELINES = {
    "SGD": optax.sgd,
    "SGD, Nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "RMSprop": optax.rmsprop,
    "Adam": optax.adam,
}


def functions(cfg: Config) -> core.TaskFamily:
    """The family, reported in log10 f."""
    family = tasks.least_squares(dim=cfg.dim)
    return family._replace(normalise=lambda loss, task: jnp.log10(finite(loss)))


def finite(loss):
    """A loss between the floor and 1e12, which is where NaN goes too."""
    return jnp.clip(jnp.nan_to_num(loss, nan=1e12), FLOOR, 1e12)


def curves(cfg: Config, optimizer, key, num_steps: int):
    """log10 f: after each step [functions, steps], and at the end [functions]."""
    found = eval.learning_curve(
        functions(cfg),
        optimizer,
        (),
        key,
        num_steps=num_steps,
        num_seeds=cfg.num_functions,
        num_eval_batches=1,
    ).normalised
    return found.train, found.final


def meta_train(cfg: Config, rule: core.LearnedOptimizer, key) -> tuple:
    """The best weights of a run, and the run's probes."""
    family = functions(cfg)._replace(
        normalise=lambda loss, task: jnp.log(cfg.loss_floor + finite(loss))
    )
    # Of the losses in a window, those after its updates are what theta has a say in.
    system = core.training(family, rule, outer_loss="same_batch")
    estimator = estimators.truncated_backprop(
        system,
        truncation=cfg.truncation,
        horizon=cfg.num_steps,
        num_tasks=cfg.num_tasks,
        gradient="first_order",
        remat="none",
    )
    key_theta, key_run = jax.random.split(key)
    probes = {}

    def report(step, metrics):
        probes[str(step)] = float(metrics["probe/functions"])
        print(f"{step:6d} {probes[str(step)]:8.3f}", flush=True)

    result = train.meta_train(
        {"functions": estimator},
        rule.init(key_theta),
        {"functions": ()},
        key_run,
        outer_opt=optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(optax.cosine_decay_schedule(cfg.learning_rate, cfg.outer_steps)),
        ),
        num_steps=cfg.outer_steps,
        probes={
            "functions": train.Probe(
                lambda theta, data, key: jnp.mean(
                    curves(cfg, rule.optimizer(theta), key, cfg.num_steps)[1]
                )
            )
        },
        probe_every=cfg.probe_every,
        on_report=report,
    )
    return result.state.best_theta, probes


def compare(cfg: Config, makers: dict, key) -> dict:
    """All contenders on the same held-out functions."""
    results = {}
    for num_steps in (cfg.num_steps, cfg.longer):
        found = {
            name: jax.jit(
                lambda make=make, n=num_steps: curves(cfg, make, jax.random.clone(key), n)
            )()
            for name, make in makers.items()
        }
        finals = {name: np.asarray(final, np.float64) for name, (_, final) in found.items()}
        means = {name: float(final.mean()) for name, final in finals.items()}
        best = min(BASELINES, key=means.__getitem__)
        lowest = np.min([finals[name] for name in BASELINES], axis=0)
        results[str(num_steps)] = {
            "mean log10 f": means,
            "best baseline": best,
            "LSTM": {
                str(seed): {
                    "below it by": _interval(finals[best] - finals[f"LSTM {seed}"]),
                    "share of functions below it": float(
                        np.mean(finals[f"LSTM {seed}"] < finals[best])
                    ),
                    "share below all baselines": float(np.mean(finals[f"LSTM {seed}"] < lowest)),
                }
                for seed in cfg.seeds
            },
            "curves": {
                name: np.mean(c, axis=0).round(4).tolist() for name, (c, _) in found.items()
            },
        }
    return results


def _interval(values: np.ndarray) -> dict[str, float]:
    """The mean, and 95 % by its standard error over functions."""
    mean, error = values.mean(), values.std(ddof=1) / len(values) ** 0.5
    return {"estimate": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    _, key_tune, key_compare = jax.random.split(jax.random.key(config.seeds[0]), 3)
    rule = learned.lstm(output_scale=config.output_scale)
    makers, probes, seconds = {}, {}, []
    for seed in config.seeds:
        start = time.perf_counter()
        key_train, _, _ = jax.random.split(jax.random.key(seed), 3)
        theta, probes[str(seed)] = meta_train(config, rule, key_train)
        makers[f"LSTM {seed}"] = rule.optimizer(theta)
        seconds.append(round(time.perf_counter() - start, 1))
    tuned = {
        name: eval.tune(
            make,
            functions(config),
            (),
            jax.random.clone(key_tune),
            num_steps=config.num_steps,
            grid=config.grid,
            num_seeds=config.num_functions,
            num_eval_batches=1,
            metric="final",
        )
        for name, make in BASELINES.items()
    }
    makers |= {name: make(tuned[name].best) for name, make in BASELINES.items()}
    found = record.write(
        {
            "seconds of meta-training": seconds,
            "learning rates": {name: rate.best for name, rate in tuned.items()},
            "at an end of the grid": [name for name, rate in tuned.items() if rate.at_edge],
            "probes": probes,
            "results": compare(config, makers, key_compare),
        }
    )
    _figure(found, config)
    return found


def _figure(record: dict, config: Config) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for name, curve in record["results"][str(config.longer)]["curves"].items():
        left.plot(curve, label=name, linewidth=2 if name.startswith("LSTM") else 1)
    left.axvline(config.num_steps, color="grey", linewidth=0.5)
    left.set(xlabel="step", ylabel="mean log10 f", title="held-out functions")
    left.legend(frameon=False, fontsize="small")
    for seed, probes in record["probes"].items():
        right.plot([int(step) for step in probes], list(probes.values()), label=f"LSTM {seed}")
    right.set(xlabel="outer step", ylabel=f"mean log10 f at step {config.num_steps}")
    right.set_title("meta-training: the probe")
    eval.save_figure(canvas, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
