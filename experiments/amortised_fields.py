"""Fields in one forward pass: an encoder of visible pixels against steps of adaptation.

Command:   python experiments/amortised_fields.py
Hardware:  one core of an x86-64 CPU: four minutes of process time.
Expected:  PSNR of one pass of the encoder at least that of three steps of MAML, less 0.5 dB: missed
           by 1.5 dB; with as many steps of the code, 1.5 dB above that of MAML after three, 1 dB
           after twenty and 0.6 dB after a hundred

16 x 16 digits of which 30 % of the pixels are seen, judged on all pixels of held-out images. The
encoder (Gu et al. 2023, arXiv:2309.06660) is a perceptron 256-128 of the visible values and of
which they are; its code of 128 numbers enters the first layer of a field of 64 Fourier features and
two layers of 128. After one pass the code may take steps of its own, three of them in training, for
which there is another encoder and field. MAML starts a field of two layers of 64 and takes two
steps of 1 in training. Adam, cosine from 1e-3, 4 images per update: 1,500 updates of MAML, and
6,000 of the encoders, which thus see four times as many images. The paper's claim, on larger data,
is that one pass is better than adaptation.

Writes results/amortised_fields.json and a figure beside it.
"""

import dataclasses
import pathlib
from itertools import pairwise

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, data, eval, tasks, train  # noqa: E402

SIZE = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 1500
    """Of MAML."""
    encoder_updates: int = 6000
    images: int = 4
    """Per update."""
    share: float = 0.3
    """Of the pixels that are seen."""
    inner_rate: float = 1.0
    steps: tuple[int, ...] = (3, 20, 100)
    """Of MAML, and of the code after one pass, at the test."""
    code_rate: float = 100.0
    code_steps: int = 3
    """In training, after one pass."""
    width: int = 128
    """Of encoder, code and field."""
    num_tasks: int = 100
    """Draws of held-out images and visible pixels."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "amortised_fields.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls((0,), 2, 3, 2, 0.3, 1.0, (3,), 1.0, 1, 4, 2, folder / "tiny.json")


def images() -> tuple[jax.Array, jax.Array]:
    """Digits for training, and others."""
    pools = data.digits()

    def resized(pool):
        shape = (len(pool.inputs), SIZE, SIZE, 1)
        return jnp.clip(jax.image.resize(jnp.asarray(pool.inputs), shape, "cubic"), 0.0, 1.0)

    return resized(pools.train), resized(pools.test)


def dense(widths, key):
    """Layers at He's scale."""
    return [
        jax.random.normal(jax.random.fold_in(key, index), shape) * (2 / shape[0]) ** 0.5
        for index, shape in enumerate(pairwise(widths))
    ]


def encode(encoder, task_params, support):
    """The code of the visible pixels, whatever their order."""
    values = jnp.zeros(SIZE**2).at[task_params.support].set(support.labels[:, 0])
    seen = jnp.zeros(SIZE**2).at[task_params.support].set(1.0)
    hidden = jax.nn.relu(jnp.concatenate([values, seen]) @ encoder[0])
    return jax.nn.relu(hidden @ encoder[1])


def fields(config: Config, pool_shape):
    """The tasks of `coordinate_images` with a field that a code enters."""
    plain = tasks.coordinate_images(pool_shape, support_share=config.share)
    frequencies = jnp.asarray(4 * np.random.default_rng(0).normal(size=(2, 64)))

    def init(task_params, key):
        key_code, key_layers = jax.random.split(key)
        widths = (128, config.width, config.width, 1)
        layers = (dense((config.width, config.width), key_code), dense(widths, key_layers))
        return algorithms.Encoded(layers, jnp.zeros(config.width))

    def loss(params, task_params, batch, key):
        (from_code,), layers = params.field
        angles = batch.inputs @ frequencies
        hidden = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1) @ layers[0]
        hidden = jax.nn.relu(hidden + (params.code @ from_code)[None])
        outputs = jax.nn.sigmoid(jax.nn.relu(hidden @ layers[1]) @ layers[2])
        value = jnp.mean((outputs - batch.labels) ** 2)
        return value, tasks.Reconstruction(-10 * jnp.log10(value))

    return plain._replace(init=init, loss=loss)


def trained(config: Config, learner, num_updates: int):
    """`(pool, key) -> theta`."""
    outer = optax.adam(optax.cosine_decay_schedule(1e-3, num_updates))

    def run(pool, key):
        key_init, key_updates = jax.random.split(key)
        theta = learner.init(key_init)

        def update(carry, index):
            theta, state = carry
            estimate, _ = learner.estimator.estimate(
                theta, (), tasks.episodes(pool), jax.random.fold_in(key_updates, index)
            )
            updates, state = outer.update(estimate.grad, state, theta)
            return (optax.apply_updates(theta, updates), state), estimate.loss

        start = theta, outer.init(theta)
        return jax.lax.scan(update, start, jnp.arange(num_updates))[0][0]

    return jax.jit(run)


def tests(config: Config, pool_shape) -> dict:
    """For each way to a field: who was trained for it, its family, and how it adapts."""
    encoded = fields(config, pool_shape)
    plain = tasks.coordinate_images(pool_shape, support_share=config.share)

    def encoder(num_steps):
        return algorithms.amortised(
            encoded,
            lambda key: dense((2 * SIZE**2, 2 * config.width, config.width), key),
            encode,
            inner_opt=optax.sgd(config.code_rate) if num_steps else None,
            num_steps=num_steps,
            num_tasks=config.images,
        )

    one_pass, hybrid = encoder(0), encoder(config.code_steps)
    ways = {"one pass": (one_pass, encoded, one_pass.adapt)}
    for steps in config.steps:
        ways[f"one pass, {steps} steps of the code"] = (hybrid, encoded, encoder(steps).adapt)
    opt = optax.sgd(config.inner_rate)
    maml = algorithms.maml(plain, opt, num_steps=2, num_tasks=config.images)
    for steps in config.steps:
        adapt = algorithms.adapt(plain, opt, num_steps=steps)
        ways[f"MAML, {steps} steps"] = (maml, plain, adapt)
    return ways


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    pool, held_out = images()
    ways, test_ways = tests(config, pool.shape), tests(config, held_out.shape)
    runs = {
        id(learner): trained(
            config, learner, config.updates if name.startswith("MAML") else config.encoder_updates
        )
        for name, (learner, *_) in ways.items()
    }
    scores = {
        name: jax.jit(algorithms.few_shot_scores(family, adapt, num_tasks=config.num_tasks))
        for name, (_, family, adapt) in test_ways.items()
    }
    results = {name: [] for name in ways}
    for seed in config.seeds:
        key_train, key_test = jax.random.split(jax.random.key(seed))
        thetas = {name: run(pool, jax.random.clone(key_train)) for name, run in runs.items()}
        for name, (learner, *_) in ways.items():
            found = scores[name](
                thetas[id(learner)], tasks.episodes(held_out), jax.random.clone(key_test)
            )
            results[name].append(float(jnp.mean(found.aux.psnr)))
    three = f"MAML, {config.steps[0]} steps"
    gaps = [a - b for a, b in zip(results["one pass"], results[three], strict=True)]
    found = record.write({"bar": -0.5, "results": results, "one pass less three steps": gaps})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6, 3.5), layout="constrained")
    axes = canvas.subplots()
    for index, (name, values) in enumerate(record["results"].items()):
        axes.plot([index] * len(values), values, "o", color="C1" if "MAML" in name else "C0")
    axes.set_xticks(range(len(record["results"])), record["results"], rotation=20, ha="right")
    axes.set(ylabel="PSNR on held-out images, dB")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
