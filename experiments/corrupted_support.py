"""Support sets with wrong targets: MAML against MAML that learns which examples to trust.

Command:   OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
               python experiments/corrupted_support.py
Hardware:  one core of an x86-64 CPU; three minutes of process time.
Expected:  learned weights at 0.35 to 0.45 of MAML's mean squared error after five steps; mean
           weight about 0.2 for wrong points and 0.45 for right ones; MAML at the smaller rate at
           0.9 of its error

Sinusoids of 10 support points, the targets of three of which are drawn from N(0, 25); five steps
of gradient descent at rate 0.01 on a network of two hidden layers of 40. The weights are those of
MetaF2N (Yin et al. 2023, arXiv:2309.08113) carried over from pixels to examples: a network sees
each pair (x, y) and a mean embedding of all. All learners have the same tasks and updates. Weights
below 1 are smaller steps too, so that MAML is trained and tested at 0.4 of its rate as well, which
is about their mean. 400 test tasks with 50 query points each; the mean squared error is taken over
them.

Writes results/corrupted_support.json and a figure beside it.
"""

import dataclasses
import pathlib
import time

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, core, data, eval, tasks, train  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 3000
    num_tasks: int = 16
    test_tasks: int = 400
    test_steps: tuple[int, ...] = (1, 5, 10)
    wrong: int = 3
    """Support points with a wrong target, of ten."""
    rate: float = 0.01
    small_rate: float = 0.004
    """Of the control."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "corrupted_support.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0, 1), 2, 2, 4, (1,), out=folder / "tiny.json")


def corrupted_sinusoids() -> core.TaskFamily:
    """Sinusoids whose data say which points of a batch have a wrong target.

    `data` is an array of zeros and ones, one per point.
    """
    family = tasks.sinusoid_regression(hidden=(40, 40))

    def init(task_params, key):
        # He's scale on a single input makes five steps at rate 0.01 diverge.
        params = family.init(task_params, key)
        keys = jax.random.split(jax.random.fold_in(key, 0), len(params))
        draw = jax.random.normal
        return tuple(
            layer | {"w": 0.1 * draw(k, layer["w"].shape)}
            for k, layer in zip(keys, params, strict=True)
        )

    def batch(wrong, task_params, key):
        key_inputs, key_noise = jax.random.split(key)
        shape = (len(wrong), 1)
        inputs = jax.random.uniform(key_inputs, shape, minval=-5.0, maxval=5.0)
        targets = task_params.amplitude * jnp.sin(inputs - task_params.phase)
        noise = 5.0 * jax.random.normal(key_noise, shape)
        return data.Pool(inputs, jnp.where(wrong[:, None] > 0, noise, targets))

    return family._replace(init=init, batch=batch, normalise=core.keep_finite)


FAMILY = corrupted_sinusoids()


def maml(inner_opt, **settings):
    """The baseline."""
    return algorithms.maml(FAMILY, inner_opt, **settings)


def weighted(inner_opt, **settings):
    """The same with learned weights."""
    return algorithms.loss_weights(FAMILY, inner_opt, num_features=2, **settings)


LEARNERS = {"MAML": maml, "MAML, smaller rate": maml, "learned weights": weighted}


def points(cfg: Config, num_queries: int) -> core.Split:
    """Which support and query points have wrong targets."""
    return core.Split(1.0 * (jnp.arange(10) < cfg.wrong), jnp.zeros(num_queries))


def meta_train(cfg: Config, make, rate: float, key):
    """Theta after all updates, and the meta-losses."""
    learner = make(optax.sgd(rate), num_steps=5, num_tasks=cfg.num_tasks, loop="unrolled")
    outer_opt = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))
    key_init, key_train = jax.random.split(key)
    pool, theta = points(cfg, 10), learner.init(key_init)

    def update(carry, index):
        theta, opt_state = carry
        found, _ = learner.estimator.estimate(theta, (), pool, jax.random.fold_in(key_train, index))
        updates, opt_state = outer_opt.update(found.grad, opt_state, theta)
        return (optax.apply_updates(theta, updates), opt_state), found.loss

    carry = (theta, outer_opt.init(theta))
    (theta, _), losses = jax.lax.scan(update, carry, jnp.arange(cfg.updates))
    return theta, losses


def test_losses(cfg: Config, make, rate: float, num_steps: int, theta, key):
    """Query losses of the test tasks; the same tasks for every learner."""
    adapt = make(optax.sgd(rate), num_steps=num_steps).adapt
    scores = algorithms.few_shot_scores(FAMILY, adapt, num_tasks=cfg.test_tasks)
    return scores(theta, points(cfg, 50), key).loss


def mean_weights(cfg: Config, theta, key):
    """Mean learned weight of wrong and of right support points."""
    wrong = points(cfg, 1).inner

    def one(key):
        key_task, key_support = jax.random.split(key)
        support = FAMILY.batch(wrong, FAMILY.sample(key_task), key_support)
        return algorithms.support_weights(theta, support)

    weights = jax.vmap(one)(jax.random.split(key, cfg.test_tasks)).mean(axis=0)
    return jnp.stack([jnp.average(weights, weights=x) for x in (wrong, 1 - wrong)])


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    results, curves = {}, {}
    keys = jax.vmap(jax.random.key)(jnp.array(config.seeds))
    test_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    for name, make in LEARNERS.items():  # On the same keys.
        begin = time.process_time()
        rate = config.small_rate if "smaller" in name else config.rate
        run = jax.vmap(lambda key, make=make, rate=rate: meta_train(config, make, rate, key))
        theta, losses = jax.block_until_ready(jax.jit(run)(jax.random.clone(keys)))
        results[name] = {"process seconds": round(time.process_time() - begin, 1), "steps": {}}
        curves[name] = smooth(np.asarray(losses).mean(axis=0))
        for steps in config.test_steps:
            test = jax.vmap(
                lambda theta, key, make=make, rate=rate, steps=steps: test_losses(
                    config, make, rate, steps, theta, key
                )
            )
            found = np.asarray(jax.jit(test)(theta, jax.random.clone(test_keys)))
            results[name]["steps"][str(steps)] = {
                "mean": [float(x) for x in found.mean(axis=1)],
                "median": [float(x) for x in np.median(found, axis=1)],
            }
        print(name, results[name], flush=True)
        if make is weighted:
            of_seeds = jax.vmap(lambda theta, key: mean_weights(config, theta, key))
            wrong, right = np.asarray(jax.jit(of_seeds)(theta, jax.random.clone(test_keys))).T
            results[name]["mean weight of wrong points"] = [float(x) for x in wrong]
            results[name]["mean weight of right points"] = [float(x) for x in right]
    found = record.write(
        {
            "bars": {"learned weights / MAML, 5 steps": 0.6},
            "results": results,
            "curves": curves,
        }
    )
    _figure(found, config.out)
    return found


def smooth(curve) -> list[float]:
    """Means of at most 60 stretches of a curve."""
    return [float(part.mean()) for part in np.array_split(curve, min(60, len(curve)))]


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5, 3.2), layout="constrained")
    axes = canvas.subplots()
    for name, curve in record["curves"].items():
        stretch = record["config"]["updates"] / len(curve)
        axes.plot((np.arange(len(curve)) + 0.5) * stretch, curve, label=name)
    axes.set(yscale="log", xlabel="outer updates", ylabel="query loss after 5 steps")
    axes.legend(frameon=False)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
