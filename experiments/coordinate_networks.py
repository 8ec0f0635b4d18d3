"""Initial weights of coordinate networks, learned from other images.

Command:   python experiments/coordinate_networks.py
Hardware:  one core of an x86-64 CPU that others used as well; five minutes.
Expected:  after 2 steps MAML 13 dB and Reptile 7 dB above random weights with the best rate (9 were
           asked for); from 30 % of the pixels, 20 steps of either 0.4 to 2.3 dB above 200 of random
           weights, both judged on all pixels (1 was asked for).

Tancik et al. 2021, arXiv:2012.02189, on 16 x 16 digits: Fourier features and two hidden layers of
64, meta-trained on 4 images per update with 2 inner steps of gradient descent at rate 1. Baselines
start from random weights, a fresh draw for every image, and have the best of several rates of
gradient descent or Adam, chosen for each number of steps on the test images themselves, which
favours them. Images are held out; PSNR is a mean over them. Writes results/coordinate_networks.json
and a figure beside it.
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

from metaopt import algorithms, data, eval, tasks, train  # noqa: E402

RULES = {"gradient descent": optax.sgd, "Adam": optax.adam}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 1500
    images_per_update: int = 4
    inner_rate: float = 1.0
    inner_steps: int = 2
    outer_rate: float = 1e-3
    test_images: int = 20
    steps: tuple[int, ...] = (0, 2, 10, 100)
    """Where PSNR is read, with all pixels."""
    share: float = 0.3
    partial_steps: tuple[int, ...] = (20, 200)
    rates: tuple[tuple[str, float], ...] = (
        ("gradient descent", 0.3),
        ("gradient descent", 1.0),
        ("gradient descent", 3.0),
        ("gradient descent", 10.0),
        ("Adam", 3e-3),
        ("Adam", 1e-2),
        ("Adam", 3e-2),
    )
    partial_rates: tuple[tuple[str, float], ...] = (
        ("gradient descent", 1.0),
        ("gradient descent", 3.0),
        ("Adam", 3e-3),
        ("Adam", 1e-2),
    )
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "coordinate_networks.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls(
            seeds=(0,),
            updates=2,
            test_images=2,
            steps=(0, 2, 3),
            partial_steps=(2, 3),
            rates=(("Adam", 0.01),),
            partial_rates=(("gradient descent", 10.0),),
            out=folder / "tiny.json",
        )


def resized(pool: data.Pool) -> jax.Array:
    """Digits as 16 x 16 images."""
    shape = (len(pool.inputs), 16, 16, 1)
    return jnp.clip(jax.image.resize(jnp.asarray(pool.inputs), shape, "cubic"), 0.0, 1.0)


def learner_of(config: Config, family, name: str):
    """MAML or Reptile with the same inner loop."""
    make = {"MAML": algorithms.maml, "Reptile": algorithms.reptile}[name]
    return make(
        family,
        optax.sgd(config.inner_rate),
        num_steps=config.inner_steps,
        num_tasks=config.images_per_update,
        loop="unrolled",
    )


def trainer(config: Config, learner):
    """The whole meta-training, `(pools, key) -> theta`, compiled once for all seeds."""
    outer_opt = optax.adam(config.outer_rate)

    def update(carry, key):
        theta, state, pools = carry
        estimate, _ = learner.estimator.estimate(theta, (), pools, key)
        updates, state = outer_opt.update(estimate.grad, state, theta)
        return (optax.apply_updates(theta, updates), state, pools), None

    def run(pools, key):
        key_init, key_updates = jax.random.split(key)
        theta = learner.init(key_init)
        keys = jax.random.split(key_updates, config.updates)
        return jax.lax.scan(update, (theta, outer_opt.init(theta), pools), keys)[0][0]

    return jax.jit(run)


def fitter(family, rule: str, num_steps: int):
    """PSNR of all pixels before each step and after the last: `(starts, pools, key, rate)`."""

    def fit(start, pools, key, rate):
        key_task, key_loss = jax.random.split(key)
        opt = RULES[rule](rate)
        task_params = family.sample(key_task)
        support, query = (
            family.batch(pool, task_params, jax.random.clone(key_loss)) for pool in pools
        )

        def psnr(params):
            loss = family.loss(params, task_params, query, jax.random.clone(key_loss))
            return loss[1].psnr

        def step(carry, _):
            params, state = carry
            before = psnr(params)
            grads = jax.grad(family.loss, has_aux=True)(
                params, task_params, support, jax.random.clone(key_loss)
            )[0]
            updates, state = opt.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), before

        carry, curve = jax.lax.scan(step, (start, opt.init(start)), length=num_steps)
        return jnp.append(curve, psnr(carry[0]))

    def mean(starts, pools, keys, rate):
        return jax.vmap(fit, (0, None, 0, None))(starts, pools, keys, rate).mean(0)

    return jax.jit(mean)


def one_seed(config: Config, trainers: dict, fitters: dict, pools: dict, seed: int) -> dict:
    """Curves of PSNR against steps, by start, rule and rate."""
    key_train, key_test, key_random = jax.random.split(jax.random.key(seed), 3)
    keys = jax.random.split(key_test, config.test_images)
    family = fitters["family"]
    sampled = family.sample(jax.random.key(0))
    random = jax.vmap(lambda key: family.init(sampled, key))(
        jax.random.split(key_random, config.test_images)
    )

    def curve(view, starts, rule, rate):
        values = fitters[view, rule](starts, pools["test"], jax.random.clone(keys), rate)
        return [float(x) for x in values]

    curves = {
        "full": {f"random, {n} {r:g}": curve("full", random, n, r) for n, r in config.rates},
        "partial": {
            f"random, {n} {r:g}": curve("partial", random, n, r) for n, r in config.partial_rates
        },
    }
    seconds = {}
    for name, run in trainers.items():
        start = time.perf_counter()
        theta = jax.block_until_ready(run(pools["train"], jax.random.clone(key_train)))
        seconds[name] = time.perf_counter() - start
        starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (config.test_images, *x.shape)), theta)
        for view in curves:
            curves[view][name] = curve(view, starts, "gradient descent", config.inner_rate)
    return {"curves": curves, "seconds": seconds}


def summary(config: Config, by_seed: dict) -> dict:
    """What the claims are about, for every seed."""
    rows: dict = {}
    few, many = config.partial_steps
    for entry in by_seed.values():
        full, partial = entry["curves"]["full"], entry["curves"]["partial"]
        random = np.array([values for name, values in full.items() if "random" in name])
        best = random.max(0)
        for step in config.steps:
            rows.setdefault(f"random, best rate: {step} steps", []).append(float(best[step]))
            for name in ("MAML", "Reptile"):
                rows.setdefault(f"{name}: {step} steps", []).append(full[name][step])
        for name in ("MAML", "Reptile"):
            gain = full[name][2] - best[2]
            rows.setdefault(f"{name}: 2 steps above random", []).append(float(gain))
            reached = np.flatnonzero(best >= full[name][2])
            steps = int(reached[0]) if len(reached) else None
            rows.setdefault(f"{name}: steps of random to its 2", []).append(steps)
        random = max(values[many] for name, values in partial.items() if "random" in name)
        rows.setdefault(f"random, best rate: partial, {many} steps", []).append(random)
        for name in ("MAML", "Reptile"):
            rows.setdefault(f"{name}: partial, {few} steps", []).append(partial[name][few])
            gain = partial[name][few] - random
            rows.setdefault(f"{name}: partial, above random", []).append(gain)
    return rows


def figure(config: Config, record: dict) -> None:
    """PSNR against steps, all pixels and some of them."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 3.6), layout="constrained")
    axes = canvas.subplots(1, 2, sharey=True)
    titles = ("all pixels", f"{config.share:.0%} of the pixels")
    for axis, view, title in zip(axes, ("full", "partial"), titles, strict=True):
        by_name: dict = {}
        for entry in record["results"].values():
            curves = entry["curves"][view]
            random = [values for name, values in curves.items() if "random" in name]
            by_name.setdefault("random, best rate at each step", []).append(np.max(random, 0))
            for name in ("MAML", "Reptile"):
                by_name.setdefault(name, []).append(curves[name])
        for colour, (name, values) in zip(("0.4", "C0", "C1"), by_name.items(), strict=True):
            mean, low, high = np.mean(values, 0), np.min(values, 0), np.max(values, 0)
            axis.plot(np.arange(len(mean)), mean, color=colour, label=name)
            axis.fill_between(np.arange(len(mean)), low, high, color=colour, alpha=0.2, lw=0)
        axis.set(title=title, xlabel="steps", xscale="symlog")
    axes[0].set_ylabel("PSNR of all pixels, dB")
    axes[0].legend(frameon=False)
    eval.save_figure(canvas, config.out)


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    start = time.perf_counter()
    digits = data.digits()
    images = {"train": resized(digits.train), "test": resized(digits.test)}
    pools = {name: tasks.episodes(values) for name, values in images.items()}
    families = {name: tasks.coordinate_images(values.shape) for name, values in images.items()}
    hidden = tasks.coordinate_images(images["test"].shape, support_share=config.share)
    trainers = {
        name: trainer(config, learner_of(config, families["train"], name))
        for name in ("MAML", "Reptile")
    }
    fitters: dict = {"family": families["test"]}
    for rule in RULES:
        fitters["full", rule] = fitter(families["test"], rule, max(config.steps))
        fitters["partial", rule] = fitter(hidden, rule, max(config.partial_steps))
    results = {}
    for seed in config.seeds:
        results[str(seed)] = one_seed(config, trainers, fitters, pools, seed)
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    found = record.write(
        {
            "summary": summary(config, results),
            "results": results,
        }
    )
    figure(config, found)
    for name, values in found["summary"].items():
        print(f"{name:44s}", *(f"{x:8.2f}" if x is not None else "       -" for x in values))
    return found


if __name__ == "__main__":
    main(tyro.cli(Config))
