"""The coordinate check: with μP, steps of a learned optimizer act alike at every width.

Command:   python experiments/coordinate_check.py
Hardware:  one core of an x86-64 CPU, shared with other work: 36 minutes, most of them compilation.
Expected:  slopes of log(change of the last hidden layer) against log(width), after 1, 5, 10 steps:
           adafac_mlp and celo2 above 0.5 in the standard form; in μP -0.22 to 0.04 and up to 0.33;
           with scaled gradients all rules within 0.15 after 5 and 10 steps (celo2_mixed, whose
           steps are orthogonal, with exponent 1/2)

Perceptrons with two hidden layers of width n on handwritten digits; no meta-training. adafac_mlp
has random weights (32 hidden units, step_mult 1e-2), scaled so that the root mean square of its
first step at width 64 is 1e-2; celo2 has random weights too; 1e-2 is the learning rate of all
others. In μP steps of hidden weights are multiplied by 64/n, so that at width 64 both forms step
alike, and in the last form gradients by n/64 before the rule sees them.
Yang et al. 2022, arXiv:2203.03466, App. D.1; Thérien et al. 2024, arXiv:2406.00153.

Writes results/coordinate_check.json and a figure beside it.
"""

import dataclasses
import pathlib

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()  # the same programs serve several optimizers

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import data, eval, learned, tasks, train  # noqa: E402

BASE_WIDTH, STEP = 64, 1e-2
LAST_HIDDEN = "1"
FORMS = ("standard", "μP", "μP, gradients scaled")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    widths: tuple[int, ...] = (64, 256, 1024)
    steps: tuple[int, ...] = (1, 5, 10)
    rules: tuple[str, ...] = ("adafac_mlp", "celo2", "celo2_mixed", "adam")
    thetas: int = 3
    """Random weights of adafac_mlp, one check each; the other rules are checked once."""
    seeds: int = 2
    """Initial parameters and batches that each check averages over."""
    batch_size: int = 64
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "coordinate_check.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls((8, 16), (1, 2), ("adafac_mlp", "celo2_mixed"), 1, 1, 8, folder / "tiny.json")


def family(width: int, cfg: Config, standard: bool):
    """Two hidden layers on digits."""
    return tasks.mup_mlp(
        (8, 8, 1), 10, hidden=(width, width), batch_size=cfg.batch_size, standard=standard
    )


def scale(exponent: float):
    """What μP multiplies the updates by; 1 at the base width."""
    return learned.scale_by_mup(
        lambda params: learned.mup_scale(
            params, learned.mlp_roles(params), hidden_mult=BASE_WIDTH**exponent, exponent=exponent
        )
    )


def gradient_scale():
    """In μP gradients shrink as 1/width; this undoes it."""
    return learned.scale_by_mup(
        lambda params: jax.tree.map(lambda _: params[-1]["w"].shape[0] / BASE_WIDTH, params)
    )


def first_step_rms(optimizer, problem, pool, key) -> jax.Array:
    """Over all parameters."""
    key_init, key_batch, key_loss = jax.random.split(key, 3)
    params = problem.init((), key_init)
    batch = problem.batch(pool, (), key_batch)
    (loss, _), grads = jax.value_and_grad(problem.loss, has_aux=True)(params, (), batch, key_loss)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, value=loss)
    return optax.tree.norm(updates) / optax.tree.size(updates) ** 0.5


def scaled_adafac_mlp(cfg: Config, pool, seed: int, standard: bool):
    """Random weights whose first step has the size wanted; it is linear in the first output."""
    rule = learned.adafac_mlp(hidden_size=32, step_mult=1e-2)
    key_theta, key_scale = jax.random.split(jax.random.key(seed))
    theta = rule.init(key_theta)
    last = theta["network"]["linear_2"]["w"]

    def with_factor(factor):
        layer = {**theta["network"]["linear_2"], "w": last.at[:, 0].multiply(factor)}
        return rule.optimizer({**theta, "network": {**theta["network"], "linear_2": layer}})

    problem = family(BASE_WIDTH, cfg, standard)
    rms = jax.jit(lambda pool, key: first_step_rms(with_factor(1.0), problem, pool, key))
    return with_factor(STEP / rms(pool, key_scale))


def contenders(cfg: Config, pool, form: str) -> dict:
    """The optimizer of every check, by name and seed of the weights."""
    found, standard = {}, form == "standard"
    for rule in cfg.rules:
        if rule == "adafac_mlp":
            for seed in range(cfg.thetas):
                found[rule, seed] = scaled_adafac_mlp(cfg, pool, seed, standard), 1.0
        elif rule == "adam":
            found[rule, 0] = optax.adam(STEP), 1.0
        else:
            unit = {"celo2": learned.celo2, "celo2_mixed": learned.celo2_mixed}[rule](STEP)
            theta = unit.init(jax.random.key(0))
            found[rule, 0] = unit.optimizer(theta), 0.5 if rule == "celo2_mixed" else 1.0
            if rule == "celo2_mixed" and form == "μP":
                found[f"{rule}, exponent 1", 0] = unit.optimizer(theta), 1.0
    if standard:
        return {name: optimizer for name, (optimizer, _) in found.items()}
    before = [gradient_scale()] if form == FORMS[2] else []
    return {name: optax.chain(*before, rule, scale(power)) for name, (rule, power) in found.items()}


def check(cfg: Config, pool, form: str) -> dict:
    """One coordinate check per rule and theta."""
    found = {}
    for (name, seed), optimizer in contenders(cfg, pool, form).items():
        result = eval.coordinate_check(
            lambda width: family(width, cfg, form == "standard"),
            optimizer,
            pool,
            jax.random.key(100 + seed),
            widths=cfg.widths,
            steps=cfg.steps,
            num_seeds=cfg.seeds,
        )
        entry = {
            "rms": {layer: x.tolist() for layer, x in result.rms.items()},
            # Where nothing moves, as hidden weights under Adam while output weights are zero.
            "slopes": {
                layer: [float(s) if np.isfinite(s) else None for s in x]
                for layer, x in result.slopes.items()
            },
        }
        found.setdefault(name, []).append(entry)
        print(f"{form}, {name}: {entry['slopes'][LAST_HIDDEN]}")
    return found


def claims(results: dict) -> dict:
    """Least and largest slope of the last hidden layer, over steps and weights."""
    found = {}
    for form, rules in results.items():
        for name, entries in rules.items():
            slopes = [s for e in entries for s in e["slopes"][LAST_HIDDEN] if s is not None]
            found.setdefault(name, {})[form] = [min(slopes), max(slopes)]
    return found


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    digits = data.digits().train
    pool = digits._replace(inputs=jnp.asarray(digits.inputs, jnp.float32))
    results = {form: check(config, pool, form) for form in FORMS}
    found = record.write({"slopes": claims(results), "results": results})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 3.8), layout="constrained")
    panels = canvas.subplots(1, len(FORMS), sharey=True)
    widths = record["config"]["widths"]
    colours = {"adafac_mlp": "#0072B2", "celo2": "#D55E00", "celo2_mixed": "#009E73",
               "celo2_mixed, exponent 1": "#CC79A7", "adam": "#000000"}  # fmt: skip
    for axes, (form, rules) in zip(panels, record["results"].items(), strict=True):
        for name, entries in rules.items():
            for index, entry in enumerate(entries):
                change = entry["rms"][LAST_HIDDEN][-1]
                label = None if index else name
                axes.plot(widths, change, marker="o", color=colours[name], label=label)
        axes.set(xscale="log", yscale="log", xlabel="width", title=form)
        axes.set_xticks(widths, [str(width) for width in widths], minor=False)
        axes.minorticks_off()
    steps = record["config"]["steps"][-1]
    panels[0].set_ylabel(f"change of the last hidden layer\nafter {steps} steps (RMS)")
    handles, labels = panels[1].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
