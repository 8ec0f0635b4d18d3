"""From settings to objects: families, pools, optimizers, estimators, by their public names."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from metaopt import core, data, estimators, eval, tasks, train, unroll
from metaopt.cli._settings import EvalSettings, RunSettings, TaskSettings, known

EMBEDDED = ("digits", "mixture", "teacher", "strokes")
VECTORS = ("mixture", "teacher")
STREAMED = ("mnist", "fashion_mnist", "cifar10", "omniglot")
MODELS = ("mlp", "mup_mlp", "logistic", "convnet", "autoencoder", "vae")
ON_IMAGES = ("convnet", "vae")
SYNTHETIC = ("quadratic", "least_squares", "sinusoid")
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
WHOLE = ("es", "backprop")
BACKPROPAGATION = ("backprop", "truncated_backprop")
SIGNED = ("pes", "nres", "es", "truncated_es")
MAX_SAMPLED_BATCH = 128  # Larger draws are for accelerators.
MAX_SAMPLED_DIRECTIONS = 32
AUGMENTATIONS: dict[str, Callable[[core.TaskFamily], core.TaskFamily]] = {
    "rescale": lambda family: tasks.rescale(family, level="global"),
    "rescale_tensor": lambda family: tasks.rescale(family, level="tensor"),
    "rescale_parameter": lambda family: tasks.rescale(family, level="parameter"),
    "rescale_wide": lambda family: tasks.rescale(family, level="global", low=1e-3, high=1e3),
    "scaled_init": tasks.scaled_init,
    "reduced_batch": tasks.reduced_batch,
    "gradient_noise": lambda family: tasks.gradient_noise(family, scale=0.1),
    "es_gradient": lambda family: tasks.es_gradient(family, sigma=(1e-3, 0.1)),
    "normalised_gradient": tasks.normalised_gradient,
    "random_directions": lambda family: tasks.random_directions(family, num_directions=16),
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
    """A family with its pools; gradients are late by `delay` steps."""

    name: str
    family: core.TaskFamily
    pools: Pools
    horizon: int
    delay: int = 0


def task_names() -> list[str]:
    """All names that `TaskSettings.names` accepts."""
    pairs = [(pool, model) for pool in (*EMBEDDED, *STREAMED) for model in MODELS]
    with_images = [p for p in pairs if p[1] not in ON_IMAGES or p[0] not in VECTORS]
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


def sampled_problems(settings: TaskSettings, horizon: int) -> list[Problem]:
    """The families that are drawn from the task distribution, with their augmentations.

    Raises:
        ValueError: for numbers out of range.
        ImportError: if the text cannot be read.
    """
    if min(settings.sampled, settings.sampled_seed) < 0 or not settings.sampled_seconds > 0:
        raise ValueError(
            f"task.sampled and task.sampled_seed must be at least 0 and task.sampled_seconds "
            f"positive, got {settings.sampled}, {settings.sampled_seed} and "
            f"{settings.sampled_seconds}."
        )
    if not settings.sampled:
        return []
    if settings.outer_loss == "validation":
        raise ValueError("task.sampled families have no validation pool; drop outer_loss.")
    pools: dict[str, Any] = {name: _pools(name, settings).train for name in EMBEDDED}
    pools["text"] = data.text().train
    rng = np.random.default_rng(settings.sampled_seed)
    problems = []
    for index in range(settings.sampled):
        drawn = tasks.sample_family(
            pools, rng, seconds=settings.sampled_seconds, max_batch_size=MAX_SAMPLED_BATCH
        )
        has_batches = drawn.data != ()
        augmented = tasks.augmented(
            drawn.family,
            rng,
            probabilities=None if has_batches else {"reduced_batch": 0.0},
            max_directions=MAX_SAMPLED_DIRECTIONS,
        )
        # The number keeps names apart; what was drawn follows from the seed.
        name = f"{index + 1}-{drawn.name.replace('/', '-')}"
        pool = Pools(train=drawn.data)
        problems.append(Problem(name, augmented.family, pool, horizon, augmented.delay))
    return problems


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


def make_estimator(
    settings: RunSettings, problem: Problem, optimizer: core.LearnedOptimizer
) -> core.Estimator:
    """The estimator of a family's meta-gradients.

    Raises:
        ValueError: for an unknown name, or a setting that the estimator does not have.
    """
    chosen = settings.estimator
    known("estimator", chosen.name, ESTIMATORS)
    system = core.training(problem.family, optimizer, outer_loss=settings.task.outer_loss)
    if problem.delay:
        system = unroll.delayed_gradients(system, delay=problem.delay)
    shortest, longest = chosen.horizon
    if not 1 <= shortest <= longest:
        raise ValueError(
            f"estimator.horizon must be a range from at least 1, got {shortest} {longest}."
        )
    shared = {"horizon": unroll.log_uniform(shortest, longest), "num_tasks": chosen.num_tasks}
    if chosen.name not in WHOLE:
        shared["truncation"] = chosen.truncation
    if chosen.name in WHOLE:
        shared["objective"] = chosen.objective
    elif chosen.objective != "mean":
        raise ValueError(f"{chosen.name} has no estimator.objective; choose from {WHOLE}.")
    if chosen.name in BACKPROPAGATION:
        shared["gradient"] = chosen.gradient
    elif chosen.gradient != "reverse":
        raise ValueError(f"{chosen.name} has no estimator.gradient; choose from {BACKPROPAGATION}.")
    if chosen.name in SIGNED:
        shared["sign"] = 1.0 if chosen.sign else None
    elif chosen.sign:
        raise ValueError(f"{chosen.name} has no estimator.sign; choose from {SIGNED}.")
    if chosen.name not in BACKPROPAGATION and chosen.name != "forward":
        shared["sigma"] = chosen.sigma
    if chosen.name == "gpes":
        shared["share"] = chosen.share
    elif chosen.share is not None:
        raise ValueError(f"{chosen.name} has no estimator.share; it belongs to gpes.")
    return getattr(estimators, chosen.name)(system, **shared)


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
    if model == "vae":
        return tasks.vae(shape, hidden=hidden, **network)
    if model == "mup_mlp":
        return tasks.mup_mlp(shape, num_classes, hidden=hidden, **network)
    if model == "convnet":
        return tasks.convnet(shape, num_classes, channels=hidden, **network)
    return tasks.mlp(shape, num_classes, hidden=hidden, **network)


def _synthetic(name: str) -> core.TaskFamily:
    return {
        "quadratic": lambda: tasks.quadratic(dim=10),
        "least_squares": lambda: tasks.least_squares(dim=10),
        "sinusoid": tasks.sinusoid_regression,
    }[name]()
