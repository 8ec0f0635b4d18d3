"""From settings to objects: families, pools, optimizers, estimators, by their public names."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from metaopt import core, data, estimators, eval, learned, tasks, train, unroll
from metaopt.cli._settings import EvalSettings, RunSettings, TaskSettings, known

EMBEDDED = ("digits", "mixture", "teacher", "strokes")
VECTORS = ("mixture", "teacher")
STREAMED = ("mnist", "fashion_mnist", "cifar10", "omniglot")
MODELS = ("mlp", "logistic", "convnet", "autoencoder")
SYNTHETIC = ("quadratic", "sinusoid")
OPTIMIZERS = ("celo2", "mlp", "adafac_mlp", "sgd", "adam")
ESTIMATORS = (
    "pes",
    "nres",
    "gpes",
    "es",
    "truncated_es",
    "backprop",
    "truncated_backprop",
    "forward",
)
AUGMENTATIONS: dict[str, Callable[[core.TaskFamily], core.TaskFamily]] = {
    "rescale": lambda family: tasks.rescale(family, level="global"),
    "rescale_tensor": lambda family: tasks.rescale(family, level="tensor"),
    "rescale_parameter": lambda family: tasks.rescale(family, level="parameter"),
    "reduced_batch": tasks.reduced_batch,
    "gradient_noise": lambda family: tasks.gradient_noise(family, scale=0.1),
    "bfloat16": tasks.bfloat16,
}
HELD_OUT = {
    "deeper": "one more hidden layer, twice as wide",
    "wider": "four times the width",
    "tanh": "another activation function",
    "longer": "five times the horizon",
}


class Pools(NamedTuple):
    """What a family is trained on, meta-validated on and reported on; `train` may be a stream."""

    train: Any = ()
    validation: Any = ()
    test: Any = ()


class Problem(NamedTuple):
    """A family with its pools."""

    name: str
    family: core.TaskFamily
    pools: Pools
    horizon: int


def task_names() -> list[str]:
    """All names that `TaskSettings.names` accepts."""
    pairs = [(pool, model) for pool in (*EMBEDDED, *STREAMED) for model in MODELS]
    with_images = [p for p in pairs if p[1] != "convnet" or p[0] not in VECTORS]
    return ["/".join(pair) for pair in with_images] + list(SYNTHETIC)


def make_problem(name: str, settings: TaskSettings, horizon: int) -> Problem:
    """Loads a pool and builds its family, augmentations included.

    Raises:
        ValueError: for unknown names and settings that a factory refuses.
        ImportError: if a dataset's package is missing.
    """
    known("task", name, task_names())
    for augmentation in settings.augment:
        known("augmentation", augmentation, AUGMENTATIONS)
    if name in SYNTHETIC:
        family, pools = _synthetic(name), Pools()
    else:
        pool, model = name.split("/")
        pools = _pools(pool, settings)
        shape = current_pool(pools.train).inputs.shape[1:]
        family = _family(model, shape, _num_classes(pools), settings)
    for augmentation in settings.augment:
        family = AUGMENTATIONS[augmentation](family)
    return Problem(name, family, pools, horizon)


def training_data(problem: Problem, settings: TaskSettings) -> Any:
    """What meta-training draws from: a pool or stream, with the validation pool where needed."""
    train_pool, validation = problem.pools.train, problem.pools.validation
    if settings.outer_loss != "validation":
        return train_pool
    if not isinstance(train_pool, data.Stream):
        return core.Split(train_pool, validation)
    return train_pool._replace(pool=lambda step: core.Split(train_pool.pool(step), validation))


def evaluation_data(problem: Problem) -> core.Split:
    """The pools of a comparison: trained on the one, reported on the other."""
    return core.Split(current_pool(problem.pools.train), problem.pools.test)


def without_augmentation(task: TaskSettings) -> TaskSettings:
    """The settings of probes and comparisons: augmentations are for meta-training."""
    return dataclasses.replace(task, augment=())


def held_out_problems(settings: RunSettings) -> list[Problem]:
    """The first family, and the shifts of it that `EvalSettings.held_out` names."""
    plain, horizon = without_augmentation(settings.task), settings.eval.horizon
    name = plain.names[0]
    problems = [make_problem(name, plain, horizon)]
    for shift in settings.eval.held_out:
        known("held-out problem", shift, HELD_OUT)
        if name in SYNTHETIC and shift != "longer":
            raise ValueError(f"{shift!r} changes a network, and {name!r} has none; drop it.")
        changed, steps = _shifted(plain, shift, horizon)
        problems.append(make_problem(name, changed, steps)._replace(name=f"{name}, {shift}"))
    return problems


def _shifted(task: TaskSettings, shift: str, horizon: int) -> tuple[TaskSettings, int]:
    changes: dict[str, Any] = {
        "deeper": {"hidden": (2 * task.hidden[0], *task.hidden)},
        "wider": {"hidden": tuple(4 * width for width in task.hidden)},
        "tanh": {"activation": "tanh" if task.activation != "tanh" else "relu"},
        "longer": {},
    }[shift]
    return dataclasses.replace(task, **changes), 5 * horizon if shift == "longer" else horizon


def make_optimizer(settings: RunSettings) -> core.LearnedOptimizer:
    """The learned optimizer of a run, as it is meta-trained."""
    chosen = settings.optimizer
    known("optimizer", chosen.name, OPTIMIZERS)
    lr = chosen.learning_rate
    if not lr > 0:
        raise ValueError(f"optimizer.learning_rate must be positive, got {lr}.")
    if chosen.name == "celo2":
        optimizer = learned.celo2(lr)
    elif chosen.name == "mlp":
        optimizer = learned.mlp()
    elif chosen.name == "adafac_mlp":
        optimizer = learned.adafac_mlp()
    elif chosen.name == "sgd":
        optimizer = learned.hyperparameters(
            optax.sgd, learning_rate=learned.positive(lr), momentum=learned.fraction(0.9)
        )
    else:
        optimizer = learned.hyperparameters(
            optax.adam,
            learning_rate=learned.positive(lr),
            b1=learned.fraction(0.9),
            b2=learned.fraction(0.999),
            eps_root=1e-8,
        )
    return learned.cosine_decayed(optimizer) if chosen.decay == "cosine" else optimizer


def make_contender(settings: RunSettings, theta: Any, name: str, num_steps: int) -> eval.Baseline:
    """A theta as a contender: its updates follow the cosine that all contenders follow.

    The learning rate of celo2 is its step size. The others learned theirs and are not tuned.
    """
    trained = settings.optimizer
    if trained.name == "celo2":

        def make(learning_rate):
            return optax.chain(
                learned.scale_by_celo2(theta),
                optax.scale_by_learning_rate(eval.cosine(learning_rate, num_steps)),
            )

        return eval.Baseline(name, make)

    decayed = dataclasses.replace(settings, optimizer=dataclasses.replace(trained, decay="cosine"))
    rule = make_optimizer(decayed).optimizer(theta, num_steps=num_steps)
    return eval.Baseline(name, lambda _: rule, learning_rate=trained.learning_rate)


def make_estimator(
    settings: RunSettings, family: core.TaskFamily, optimizer: core.LearnedOptimizer
) -> core.Estimator:
    """The estimator of a family's meta-gradients."""
    chosen = settings.estimator
    known("estimator", chosen.name, ESTIMATORS)
    system = core.training(family, optimizer, outer_loss=settings.task.outer_loss)
    horizon = unroll.log_uniform(*chosen.horizon)
    if chosen.name == "es":
        return estimators.es(
            system, sigma=chosen.sigma, horizon=horizon, num_tasks=chosen.num_tasks
        )
    if chosen.name == "backprop":
        return estimators.backprop(system, horizon=horizon, num_tasks=chosen.num_tasks)
    windows = {
        "truncation": chosen.truncation,
        "horizon": horizon,
        "num_tasks": chosen.num_tasks,
    }
    if chosen.name == "truncated_backprop":
        return estimators.truncated_backprop(system, **windows)
    if chosen.name == "forward":
        return estimators.forward(system, **windows)
    if chosen.name == "gpes":
        return estimators.gpes(system, sigma=chosen.sigma, share=chosen.share, **windows)
    factories = {
        "pes": estimators.pes,
        "nres": estimators.nres,
        "truncated_es": estimators.truncated_es,
    }
    return factories[chosen.name](system, sigma=chosen.sigma, **windows)


def make_outer(settings: RunSettings) -> optax.GradientTransformation:
    """Clipping and Adam with warm-up and cosine, for theta."""
    outer = settings.outer
    if outer.steps < 1 or outer.warmup < 0:
        raise ValueError(
            f"outer.steps must be at least 1 and outer.warmup at least 0, "
            f"got {outer.steps} and {outer.warmup}."
        )
    if not (outer.learning_rate > 0 and outer.clip > 0):
        raise ValueError(
            f"outer.learning_rate and outer.clip must be positive, "
            f"got {outer.learning_rate} and {outer.clip}."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        outer.learning_rate,
        min(outer.warmup, outer.steps - 1),
        outer.steps,
        outer.final_fraction * outer.learning_rate,
    )
    return optax.chain(optax.clip_by_global_norm(outer.clip), optax.adam(schedule, b2=outer.b2))


def make_probes(settings: RunSettings, optimizer: core.LearnedOptimizer) -> dict[str, train.Probe]:
    """One probe per family, on tasks that meta-training does not draw."""
    chosen, plain = settings.eval, without_augmentation(settings.task)

    def make(name):
        problem = make_problem(name, plain, chosen.horizon)
        score = eval.probe(
            problem.family, optimizer, num_steps=chosen.horizon, num_tasks=chosen.probe_tasks
        )
        return train.Probe(score, current_pool(problem.pools.train))

    return {name: make(name) for name in settings.task.names}


def current_pool(source: Any) -> Any:
    """A pool as it is, the first pool of a stream."""
    return source.pool(0) if isinstance(source, data.Stream) else source


def make_grid(settings: EvalSettings) -> tuple[float, ...]:
    """The learning rates on which every contender is tuned."""
    low, high = settings.grid
    if not 0 < low <= high or settings.grid_per_decade < 1:
        raise ValueError(
            f"eval.grid needs 0 < low <= high and eval.grid_per_decade at least 1, "
            f"got {settings.grid} and {settings.grid_per_decade}."
        )
    decades = math.log10(high / low)
    count = round(decades * settings.grid_per_decade) + 1
    return tuple(low * 10 ** (decades * i / max(count - 1, 1)) for i in range(count))


def _pools(name: str, settings: TaskSettings) -> Pools:
    if name in STREAMED:
        where: dict[str, Any] = {"data_dir": settings.data_dir}
        return Pools(
            data.tfds_stream(name, split="train[:90%]", **where),
            data.tfds_stream(name, split="train[90%:]", **where).pool(0),
            data.tfds_stream(name, split="test", **where).pool(0),
        )
    if name == "digits":
        digits = data.digits()
        return Pools(digits.train, digits.validation, digits.test)
    key_make, key_order = jax.random.split(jax.random.key(0))
    if name == "mixture":
        pool = data.gaussian_mixture(key_make, num_classes=5, dim=16, num_examples=1600)
    elif name == "teacher":
        pool = data.teacher_network(key_make, num_classes=5, dim=16, num_examples=1600)
    else:
        pool = data.strokes(key_make, num_classes=20, examples_per_class=80)
    order = jax.random.permutation(key_order, 1600)
    parts = (order[:1000], order[1000:1200], order[1200:])
    return Pools(*(jax.tree.map(lambda x, rows=rows: x[rows], pool) for rows in parts))


def _num_classes(pools: Pools) -> int:
    if isinstance(pools.train, data.Stream):
        return pools.train.num_classes
    return 1 + max(int(pool.labels.max()) for pool in pools)


def _family(model: str, shape, num_classes: int, settings: TaskSettings) -> core.TaskFamily:
    batch_size, hidden, activation = settings.batch_size, settings.hidden, settings.activation
    if model == "logistic":
        return tasks.logistic(shape, num_classes, batch_size=batch_size)
    network: dict[str, Any] = {"activation": activation, "batch_size": batch_size}
    if model == "autoencoder":
        return tasks.autoencoder(shape, hidden=hidden, **network)
    if model == "convnet":
        return tasks.convnet(shape, num_classes, channels=hidden, **network)
    return tasks.mlp(shape, num_classes, hidden=hidden, **network)


def _synthetic(name: str) -> core.TaskFamily:
    return tasks.quadratic(dim=10) if name == "quadratic" else tasks.sinusoid_regression()
