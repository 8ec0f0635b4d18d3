"""Representations for learning online: where fast adaptation forgets, OML does not.

Command:   python experiments/interference.py
Hardware:  one core of an x86-64 CPU: 2.5 minutes of process time.
Expected:  error over all functions of a stream at its end at most a tenth of that of a
           representation that was trained for fast adaptation to one function

Six sinusoids come one after the other, 6 batches of 8 points each; the head of a perceptron
128-128-200 takes one SGD step of 0.01 per batch (Javed and White 2019, arXiv:1905.12588; the
comparison is that of arXiv:1910.01705). `interference` is meta-trained on such streams; fast
adaptation is the same learner on streams of one function each, six times as many of them, so that
both see as many batches. Adam, clipped to norm 10; every number is a mean over 400 new streams.

Writes results/interference.json and a figure beside it.
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

DATA = tasks.episodes(())
BAR = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    hidden: tuple[int, ...] = (128, 128, 200)
    num_functions: int = 6
    """Of a stream."""
    steps: int = 1500
    """Outer steps."""
    num_streams: int = 4
    """Streams per outer step."""
    inner_rate: float = 0.01
    outer_rate: float = 1e-3
    """Where the cosine decay starts."""
    num_tasks: int = 400
    """New streams of an evaluation."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "interference.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0,), (4,), 2, 3, 2, 0.01, 1e-3, 2, folder / "tiny.json")


def streams(config: Config, num_functions: int, **settings):
    """The family; a stream of one function has the names of all."""
    return tasks.sinusoid_stream(
        hidden=config.hidden,
        num_functions=num_functions,
        num_ids=config.num_functions,
        **settings,
    )


def learner_of(config: Config, num_functions: int):
    """OML on streams of so many functions; all see as many batches per outer step."""
    return algorithms.interference(
        streams(config, num_functions),
        optax.sgd(config.inner_rate),
        num_tasks=config.num_streams * config.num_functions // num_functions,
    )


def trained(config: Config, num_functions: int):
    """`(theta, key) -> (theta, losses)`."""
    learner = learner_of(config, num_functions)
    outer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adam(optax.cosine_decay_schedule(config.outer_rate, config.steps)),
    )

    def run(theta, key):
        def step(carry, index):
            theta, opt_state = carry
            estimate, _ = learner.estimator.estimate(
                theta, (), DATA, jax.random.fold_in(key, index)
            )
            updates, opt_state = outer.update(estimate.grad, opt_state, theta)
            return (optax.apply_updates(theta, updates), opt_state), estimate.loss

        last, losses = jax.lax.scan(step, (theta, outer.init(theta)), jnp.arange(config.steps))
        return last[0], losses

    return run


def errors_by_function(config: Config):
    """`(theta, key) -> ` the error of every function, in the order of the stream, at its end."""
    family = streams(config, config.num_functions)
    adapt = learner_of(config, config.num_functions).adapt

    def each(theta, task_params, support, key):
        """Adapted parameters, kept so that every function can be asked for by itself."""
        params = adapt(theta, task_params, support, key)
        # The same key again, on purpose: nothing but the query set draws from it.
        key_query = jax.random.fold_in(jax.random.clone(key), 1)
        query = family.batch(DATA.outer, task_params, key_query)
        parts = jax.tree.map(lambda x: x.reshape(config.num_functions, -1, x.shape[-1]), query)
        key_loss = jax.random.clone(key)
        loss = jax.vmap(lambda part: family.loss(params, task_params, part, key_loss)[0])
        return loss(parts)

    def run(theta, key):
        def one(key):
            key_task, key_support, key_adapt = jax.random.split(key, 3)
            task_params = family.sample(key_task)
            support = family.batch(DATA.inner, task_params, key_support)
            return each(theta, task_params, support, key_adapt)

        return jnp.mean(jax.vmap(one)(jax.random.split(key, config.num_tasks)), axis=0)

    return run


def error_of_one(config: Config):
    """`(theta, key) -> ` the error after a stream of one function."""
    learner = learner_of(config, 1)
    test = algorithms.few_shot_scores(streams(config, 1), learner.adapt, num_tasks=config.num_tasks)
    return lambda theta, key: jnp.mean(test(theta, DATA, key).loss)


def one_seed(config: Config):
    """All learners of a seed, as a function of its key."""

    def run(key):
        key_init, key_fast, key_oml, key_all, key_one = jax.random.split(key, 5)
        theta = learner_of(config, 1).init(key_init)
        fast, fast_losses = trained(config, 1)(theta, key_fast)
        oml, oml_losses = trained(config, config.num_functions)(theta, key_oml)
        thetas = jax.tree.map(lambda *x: jnp.stack(x), theta, fast, oml)
        return {
            "by function": jax.vmap(errors_by_function(config), (0, None))(thetas, key_all),
            "one function": jax.vmap(error_of_one(config), (0, None))(thetas, key_one),
            "losses": jnp.stack([fast_losses, oml_losses]),
        }

    return run


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    run = one_seed(config)
    each = jax.jit(jax.vmap(lambda seed: run(jax.random.key(seed))))
    found = jax.tree.map(np.asarray, each(jnp.array(config.seeds)))
    names = ("untrained", "fast adaptation", "interference")
    results = {
        name: {
            "all functions": found["by function"][:, index].mean(axis=-1).tolist(),
            "by function": found["by function"][:, index].tolist(),
            "one function": found["one function"][:, index].tolist(),
        }
        for index, name in enumerate(names)
    }
    fast, oml = (np.array(results[name]["all functions"]) for name in names[1:])
    every = max(1, config.steps // 100)
    smooth = found["losses"][:, :, : config.steps // every * every]
    found = record.write(
        {
            "bar": BAR,
            "results": results,
            "ratio": (oml / fast).tolist(),
            "losses": smooth.reshape(*smooth.shape[:2], -1, every).mean(axis=-1).tolist(),
            "losses every": every,
        }
    )
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7.5, 3), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for name, result in record["results"].items():
        errors = np.array(result["by function"])
        place = np.arange(1, errors.shape[1] + 1)
        left.plot(place, errors.mean(axis=0), marker="o", label=name)
        left.fill_between(place, errors.min(axis=0), errors.max(axis=0), alpha=0.15)
    left.set(yscale="log", xlabel="place in the stream", ylabel="error at its end")
    left.legend(frameon=False, fontsize="small")
    losses = np.array(record["losses"])
    steps = record["losses every"] * np.arange(1, losses.shape[-1] + 1)
    for index, name in enumerate(("fast adaptation", "interference")):
        right.plot(steps, losses[:, index].T, color=f"C{index + 1}", lw=0.8)
        right.plot([], [], color=f"C{index + 1}", label=name)
    right.set(yscale="log", xlabel="outer steps", ylabel="meta-loss of its own streams")
    right.legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
