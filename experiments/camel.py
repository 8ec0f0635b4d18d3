"""Features shared by environments: eight measurements are enough, and weights are parameters.

Command:   python experiments/camel.py
Hardware:  one core of an x86-64 CPU: two minutes of process time.
Expected:  oscillator   error of new environments from 8 measurements at most 2 % of the variance;
                        R² of every parameter at least 0.75, 0.9 in the mean: in most seeds, not
                        where training ends at a higher loss
           charges      well within the same bars in every seed

CAMEL (Blanke and Lelarge 2024, arXiv:2312.00477) on `tasks.oscillator` and `tasks.point_charges`:
12 training environments and 20 new ones of 60 measurements with noise 0.01; tanh network 64-64;
6,000 steps of Adam, cosine from 3e-3. The error of k measurements is that of 32 others, over 400
draws; beside it, least squares on the features of the untrained network. Parameters of the new
environments are read off the weights that all their measurements, or 8 of them, give, by the affine
map that the 12 training environments fit.

Writes results/camel.json and a figure beside it.
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

SYSTEMS = {"oscillator": tasks.oscillator, "charges": tasks.point_charges}
BARS = {"error over variance": 0.02, "lowest R2": 0.75, "mean R2": 0.9}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_train: int = 12
    """Training environments."""
    num_test: int = 20
    """New environments."""
    num_points: int = 60
    """Measurements in each."""
    steps: int = 6000
    """Outer steps."""
    shots: tuple[int, ...] = (4, 8, 16, 24)
    num_tasks: int = 400
    """Draws that an error is averaged over."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "camel.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0, 1), 6, 3, 40, 5, (8,), 4, folder / "tiny.json")


def learner_of(config: Config, system, num_environments: int, shots: int, queries: int):
    """CAMEL with as many features as there are parameters, and its family."""
    num_outputs = system.terms(jnp.zeros((1, system.num_inputs))).shape[1]
    init, apply = algorithms.affine_network(
        system.num_inputs, system.num_parameters, num_outputs=num_outputs
    )
    shape = (num_environments, config.num_points, system.num_inputs)
    family = tasks.environments(init, apply, pool_shape=shape, num_shots=shots, num_queries=queries)
    return family, algorithms.camel(family, num_environments=num_environments)


def trained(config: Config, system):
    """`(pool, key) -> (initial theta, trained theta, losses)`."""
    half = config.num_points // 2
    _, learner = learner_of(config, system, config.num_train, half, config.num_points - half)
    outer = optax.adam(optax.cosine_decay_schedule(3e-3, config.steps))

    def run(pool, key):
        key_init, key_run = jax.random.split(key)
        theta = learner.init(key_init)

        def step(carry, index):
            theta, opt_state = carry
            estimate, _ = learner.estimator.estimate(
                theta, (), tasks.episodes(pool), jax.random.fold_in(key_run, index)
            )
            updates, opt_state = outer.update(estimate.grad, opt_state, theta)
            return (optax.apply_updates(theta, updates), opt_state), estimate.loss

        last, losses = jax.lax.scan(step, (theta, outer.init(theta)), jnp.arange(config.steps))
        return theta, last[0], losses

    return run


def scores(config: Config, system, thetas, pool, key):
    """Query errors from k measurements of new environments, [thetas, shots], on the same draws."""
    found = []
    for index, shots in enumerate(config.shots):
        family, learner = learner_of(config, system, config.num_test, shots, 32)
        test = algorithms.few_shot_scores(family, learner.adapt, num_tasks=config.num_tasks)
        result = jax.vmap(test, (0, None, None))(
            thetas, tasks.episodes(pool), jax.random.fold_in(key, index)
        )
        found.append(jnp.mean(result.loss, axis=1))
    return jnp.stack(found, axis=1)


def weights_of(config: Config, system, theta, pool, num_points: int):
    """The weights of every environment, from its first measurements."""
    _, learner = learner_of(config, system, config.num_train, 8, 8)

    def one(inputs, labels):
        support = data.Pool(inputs[:num_points], labels[:num_points])
        return learner.adapt(theta, (), support, jax.random.key(0)).weights

    return jax.vmap(one)(pool.inputs, pool.labels)


def r_squared(estimates, parameters):
    """Share of each parameter's variance that the estimates explain."""
    residual = jnp.sum((estimates - parameters) ** 2, axis=0)
    return 1 - residual / jnp.sum((parameters - parameters.mean(0, keepdims=True)) ** 2, axis=0)


def one_seed(config: Config, system):
    """Everything about one seed, as a function of its key."""

    def run(key):
        key_pool, key_test, key_train, key_scores = jax.random.split(key, 4)
        sizes = {"num_points": config.num_points}
        pool = tasks.environment_pool(system, key_pool, num_environments=config.num_train, **sizes)
        new = tasks.environment_pool(system, key_test, num_environments=config.num_test, **sizes)
        first, theta, losses = trained(config, system)(pool, key_train)
        known = weights_of(config, system, theta, pool, config.num_points)
        both = jax.tree.map(lambda *x: jnp.stack(x), theta, first)
        errors = scores(config, system, both, new, key_scores)
        estimates = {
            name: algorithms.identify(
                weights_of(config, system, theta, new, num_points), known, pool.parameters
            )
            for name, num_points in (("all", config.num_points), ("8", 8))
        }
        return {
            "variance": jnp.var(new.labels),
            "final training loss": losses[-1],
            "error": errors[0],
            "error, untrained features": errors[1],
            "R2": {name: r_squared(x, new.parameters) for name, x in estimates.items()},
            "parameters": new.parameters,
            "estimates": estimates["all"],
        }

    return run


def summary(config: Config, found: dict) -> dict:
    """Numbers of one system, per seed, and whether they reach the bars."""
    variance, at = found["variance"], config.shots.index(8)
    r2 = found["R2"]["all"]
    reached = {
        "error over variance": found["error"][:, at] / variance,
        "lowest R2": r2.min(axis=1),
        "mean R2": r2.mean(axis=1),
    }
    met = {
        name: bool(values.max() <= BARS[name] if "error" in name else values.min() >= BARS[name])
        for name, values in reached.items()
    }
    return {
        "variance": variance.tolist(),
        "final training loss": found["final training loss"].tolist(),
        "error by shots": found["error"].tolist(),
        "error by shots, untrained features": found["error, untrained features"].tolist(),
        "R2 from all measurements": r2.tolist(),
        "R2 from 8 measurements": found["R2"]["8"].tolist(),
        "reached": {name: values.tolist() for name, values in reached.items()},
        "reached in every seed": met,
        "parameters, first seed": found["parameters"][0].tolist(),
        "estimates, first seed": found["estimates"][0].tolist(),
    }


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    results = {}
    for name, make in SYSTEMS.items():
        run = one_seed(config, make())
        # One seed after the other, in one program: vectorised there would be one more array axis
        # than XLA on CPU reduces safely.
        each = jax.jit(lambda seeds, run=run: jax.lax.map(lambda s: run(jax.random.key(s)), seeds))
        found = jax.tree.map(np.asarray, each(jnp.array(config.seeds)))
        results[name] = summary(config, found)
    found = record.write({"bars": BARS, "results": results})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8.5, 3.2), layout="constrained")
    left, *others = canvas.subplots(1, 1 + len(SYSTEMS))
    shots = record["config"]["shots"]
    for name, colour in zip(record["results"], ("C0", "C1"), strict=True):
        result = record["results"][name]
        variance = np.array(result["variance"])[:, None]
        for key, style in (("", "-"), (", untrained features", "--")):
            share = np.array(result[f"error by shots{key}"]) / variance
            left.plot(shots, np.median(share, 0), style, color=colour, marker="o", label=name + key)
            left.fill_between(shots, share.min(0), share.max(0), color=colour, alpha=0.15)
    left.axhline(BARS["error over variance"], color="grey", lw=0.8)
    left.set(yscale="log", xlabel="measurements", ylabel="error over variance")
    left.legend(frameon=False, fontsize="x-small", loc="upper right", bbox_to_anchor=(1, 0.75))
    for axes, (name, result) in zip(others, record["results"].items(), strict=True):
        true, read = (np.array(result[f"{k}, first seed"]) for k in ("parameters", "estimates"))
        for index in range(true.shape[1]):
            axes.plot(true[:, index], read[:, index], "o", ms=3, label=f"w{index + 1}")
        ends = [true.min(), true.max()]
        axes.plot(ends, ends, color="grey", lw=0.8)
        axes.set(xlabel="parameter", ylabel="read off the weights", title=name)
        axes.legend(frameon=False, fontsize="x-small")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
