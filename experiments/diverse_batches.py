"""Diverse batches of tasks where some kinds of tasks are rare.

Command:   python experiments/diverse_batches.py
Hardware:  one core of an x86-64 CPU; three minutes.
Expected:  distance to the mean over kinds 0.59 to 0.72 of that of uniform batches (at most 0.75),
           and to the mean over tasks 1.1 to 1.5 of it; MAML's error a quarter of that of uniform
           batches on the rarest kind, and nearly three times as large on the most frequent one

100 tasks of four kinds, 70, 20, 7 and 3 of them, in batches of 4 and of 8: drawn uniformly, and by
a determinantal point process over a Gaussian kernel. First, how far the mean gradient of a batch is
from the mean over kinds and from the mean over tasks, where gradients are points in 10 dimensions,
clustered by kind. Then MAML on sinusoids of amplitude 4 whose kinds are four ranges of the phase,
related by their values on a grid: 5 inner steps of 0.01, Adam at 1e-3, and the error on new tasks
of each kind. Uniform batches are those of the same process with the identity for a kernel.
Determinantal batches: Zhang et al. 2017, arXiv:1705.00607. Writes results/diverse_batches.json and
a figure beside it.
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

from metaopt import algorithms, eval, tasks, train  # noqa: E402

BAR = 0.75
AMPLITUDE = 4.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    counts: tuple[int, ...] = (70, 20, 7, 3)
    """Tasks of each kind."""
    sizes: tuple[int, ...] = (4, 8)
    """Tasks of a batch."""
    draws: int = 1000
    """Batches, for distances of gradients."""
    updates: int = 5000
    """Of MAML."""
    inner_steps: int = 5
    num_tasks: int = 200
    """New tasks of each kind."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "diverse_batches.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0, 1), (4, 2, 1), (2,), 3, 2, 1, 2, folder / "tiny.json")

    @property
    def kinds(self) -> np.ndarray:
        """The kind of every task."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def kernels(config: Config, embeddings):
    """Two kernels: that of uniform batches, and that of diverse ones."""
    # Most pairs are of one kind, so that the median distance is one within a kind.
    diverse = algorithms.task_kernel(embeddings, width=2.0)
    return jnp.stack([jnp.eye(len(config.kinds)), diverse])


def distances(config: Config, size: int):
    """`(key) -> ` for uniform and for diverse batches, mean distances to both targets."""
    kinds, count = jnp.asarray(config.kinds), len(config.counts)

    def run(key):
        key_kinds, key_tasks, key_draws = jax.random.split(key, 3)
        gradients = 4 * jax.random.normal(key_kinds, (count, 10))[kinds]
        gradients += jax.random.normal(key_tasks, gradients.shape)
        weights = jnp.asarray(config.counts)[kinds]
        targets = jnp.stack([jnp.sum(gradients / weights[:, None], 0) / count, gradients.mean(0)])

        def of(kernel):
            keys = jax.random.split(key_draws, config.draws)
            batches = jax.vmap(lambda key: algorithms.k_dpp(kernel, key, size=size))(keys)
            means = gradients[batches].mean(axis=1)
            far = jnp.linalg.norm(means[:, None] - targets[None], axis=-1).mean(axis=0)
            seen = jax.nn.one_hot(kinds[batches], count).max(axis=1).sum(axis=1).mean()
            return {"mean over kinds": far[0], "mean over tasks": far[1], "kinds": seen}

        return jax.vmap(of)(kernels(config, gradients))

    return run


def phases(config: Config, kind, key, shape=()):
    """Kinds are quarters of the range of phases, or so."""
    return (kind + jax.random.uniform(key, shape)) * jnp.pi / len(config.counts)


def maml_errors(config: Config, size: int):
    """`(key) -> ` errors after adaptation, [batches, kind]."""
    family = tasks.sinusoid_regression(batch_size=10)
    # At the usual scale of weights, steps of 0.01 diverge from the start.
    family = family._replace(
        init=lambda *args, init=family.init: jax.tree.map(lambda x: 0.3 * x, init(*args))
    )
    adapt = algorithms.adapt(family, optax.sgd(0.01), num_steps=config.inner_steps)
    outer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))

    def task_loss(theta, index, bank, key):
        task = jax.tree.map(lambda x: x[index], bank)
        key_support, key_query, key_adapt, key_loss = jax.random.split(key, 4)
        params = adapt(theta, task, family.batch((), task, key_support), key_adapt)
        return family.loss(params, task, family.batch((), task, key_query), key_loss)[0]

    estimator = algorithms.diverse_tasks(task_loss, num_tasks=size)

    def trained(pools, key):
        key_init, key_updates = jax.random.split(key)
        theta = family.init(None, key_init)

        def update(carry, index):
            theta, state = carry
            estimate, _ = estimator.estimate(
                theta, (), pools, jax.random.fold_in(key_updates, index)
            )
            updates, state = outer.update(estimate.grad, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        indices = jnp.arange(config.updates)
        return jax.lax.scan(update, (theta, outer.init(theta)), indices)[0][0]

    def error(theta, kind, key):
        def sample(key):
            return tasks.SinusoidTask(jnp.array(AMPLITUDE), phases(config, kind, key))

        of_kind = family._replace(sample=sample)
        test = algorithms.few_shot_scores(of_kind, adapt, num_tasks=config.num_tasks)
        return test(theta, (), key).loss.mean()

    def run(key):
        key_bank, key_train, key_test = jax.random.split(key, 3)
        kinds = jnp.asarray(config.kinds)
        bank = tasks.SinusoidTask(
            jnp.full(kinds.shape, AMPLITUDE), phases(config, kinds, key_bank, kinds.shape)
        )
        grid = jnp.linspace(-5, 5, 50)
        values = bank.amplitude[:, None] * jnp.sin(grid[None] - bank.phase[:, None])
        pools = algorithms.RelatedTasks(bank, kernels(config, values))
        axes = (algorithms.RelatedTasks(None, 0), None)
        thetas = jax.vmap(trained, axes)(pools, key_train)
        every = jnp.arange(len(config.counts))
        return jax.vmap(lambda theta: jax.vmap(error, (None, 0, None))(theta, every, key_test))(
            thetas
        )

    return run


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    seeds = jnp.array(config.seeds)
    results = {}
    for size in config.sizes:
        far = distances(config, size)
        far = jax.jit(jax.vmap(lambda seed, far=far: far(jax.random.key(seed))))(seeds)
        far = {name: np.asarray(values).T for name, values in far.items()}  # [batches, seeds]
        errors = maml_errors(config, size)
        errors = jax.jit(jax.vmap(lambda seed, run=errors: run(jax.random.key(seed))))(seeds)
        errors = np.asarray(errors).swapaxes(0, 1)  # [batches, seeds, kinds]
        weights = np.array(config.counts) / sum(config.counts)
        results[str(size)] = {
            name: {
                "distance": {target: values[index].tolist() for target, values in far.items()},
                "errors by kind": errors[index].tolist(),
                "error, kinds alike": errors[index].mean(axis=-1).tolist(),
                "error, tasks alike": (errors[index] @ weights).tolist(),
            }
            for index, name in enumerate(("uniform", "diverse"))
        }
    found = record.write({"bar": BAR, "results": results})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    counts = record["config"]["counts"]
    canvas = Figure(figsize=(3.5 * len(record["results"]), 3), layout="constrained")
    for axes, (size, found) in zip(
        np.ravel(canvas.subplots(1, len(record["results"]), sharey=True)),
        record["results"].items(),
        strict=True,
    ):
        for name, result in found.items():
            errors = np.array(result["errors by kind"])
            lines = axes.plot(errors.mean(axis=0), marker="o", label=name)
            axes.fill_between(
                np.arange(len(counts)),
                errors.min(axis=0),
                errors.max(axis=0),
                alpha=0.2,
                color=lines[0].get_color(),
            )
        axes.set_xticks(range(len(counts)), counts)
        axes.set(xlabel="tasks of the kind", title=f"batches of {size}", yscale="log")
    canvas.axes[0].set_ylabel("error after adaptation")
    canvas.axes[0].legend(frameon=False)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
