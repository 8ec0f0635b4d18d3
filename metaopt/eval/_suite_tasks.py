"""The tasks of the evaluation suite: one problem each, seeds draw its start and its batches.

None has the form of a task that the shipped rules are meta-trained on (a perceptron with 32 hidden
rectifiers on digits at a usual length, perceptrons on mixtures, teachers and strokes, an
autoencoder and a small convolutional network on strokes): they differ in architecture, width,
depth, activation, data, batch size, length or precision. Sizes are such that a step takes about a
millisecond on one core.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from metaopt import data, tasks
from metaopt.core import Split, TaskFamily

IMAGE, CLASSES = (8, 8, 1), 10


class SuiteProblem(NamedTuple):
    """A task, loaded.

    Attributes:
        family: it samples one task, always the same.
        data: `Split(train, test)` pools; empty ones where the loss needs no data.
        num_steps: inner steps.
    """

    family: TaskFamily
    data: Split
    num_steps: int


class SuiteTask(NamedTuple):
    """A task of the suite.

    Attributes:
        name: results are stored under it, so it stands for one problem.
        group: what kind of shift or model it is.
        make: `() -> SuiteProblem`; loads data.
    """

    name: str
    group: str
    make: Callable[[], SuiteProblem]


def suite_tasks() -> tuple[SuiteTask, ...]:
    """The held-out tasks, 24 in eleven groups.

    Returns:
        Tasks; nothing is loaded before their `make` is called.
    """
    return (
        *_perceptrons(),
        *_tables(),
        *_images(),
        *_languages(),
        *_functions(),
    )


def _perceptrons():
    def digits(name, group, *, num_steps=300, hidden=(64,), wrap=None, **settings):
        def make():
            family = tasks.mlp(IMAGE, CLASSES, hidden=hidden, **settings)
            return _on_digits(family if wrap is None else wrap(family), num_steps)

        return SuiteTask(name, group, make)

    return (
        digits("mlp_wide", "mlp", hidden=(128,)),
        digits("mlp_four_layers", "mlp", hidden=(64, 64, 64, 64)),
        digits("mlp_tanh", "mlp", hidden=(64, 64), activation="tanh"),
        digits("mlp_silu", "mlp", hidden=(128, 64), activation="silu"),
        digits("mlp_long", "long", hidden=(32,), num_steps=3000),
        digits("mlp_batch_8", "batch", batch_size=8),
        digits("mlp_batch_512", "batch", batch_size=512),
        digits("mlp_bfloat16", "bfloat16", hidden=(64, 64), wrap=tasks.bfloat16),
    )


def _tables():
    def table(name, *, hidden, batch_size=32):
        def make():
            loaded = data.tabular(name)
            settings = {"hidden": hidden, "batch_size": batch_size}
            shape = loaded.train.inputs.shape[1:]
            if loaded.num_classes:
                family = tasks.mlp(shape, loaded.num_classes, activation="silu", **settings)
            else:
                family = tasks.regression(shape, activation="tanh", **settings)
            return SuiteProblem(family, Split(loaded.train, loaded.test), 300)

        return SuiteTask(name, "tabular", make)

    return (
        table("wine", hidden=(64, 64)),
        table("breast_cancer", hidden=(64,)),
        table("diabetes", hidden=(64, 64)),
    )


def _images():
    def on_digits(name, group, make_family, num_steps=300):
        return SuiteTask(name, group, lambda: _on_digits(make_family(), num_steps))

    def convnet_strokes():
        family = tasks.convnet((16, 16, 1), 20, channels=(16, 32), activation="silu", batch_size=32)
        pool = data.strokes(jax.random.key(1), num_classes=20, examples_per_class=80, size=16)
        order = jax.random.permutation(jax.random.key(2), len(pool.labels))
        train, test = (
            jax.tree.map(lambda x, rows=rows: x[rows], pool)
            for rows in (order[:1200], order[1200:])
        )
        return SuiteProblem(family, Split(train, test), 300)

    return (
        on_digits("convnet_digits", "convnet", lambda: tasks.convnet(IMAGE, CLASSES)),
        SuiteTask("convnet_strokes", "convnet", convnet_strokes),
        on_digits(
            "autoencoder",
            "generative",
            lambda: tasks.autoencoder(IMAGE, hidden=(64, 16, 64), batch_size=32),
        ),
        on_digits(
            "autoencoder_deep",
            "generative",
            lambda: tasks.autoencoder(
                IMAGE,
                hidden=(64, 32, 8, 32, 64),
                activation="tanh",
                reconstruction="cross_entropy",
            ),
        ),
        on_digits("vae", "generative", lambda: tasks.vae(IMAGE, hidden=(64,), batch_size=32)),
        on_digits(
            "vision_transformer", "attention", lambda: tasks.vision_transformer(IMAGE, CLASSES)
        ),
        on_digits("logistic", "convex", lambda: tasks.logistic(IMAGE, CLASSES, l2=1e-4)),
    )


def _languages():
    def on_text(name, group, factory, num_steps=300, **settings):
        def make():
            text = data.text()
            family = factory(len(text.alphabet), length=32, batch_size=16, **settings)
            return SuiteProblem(family, Split(text.train, text.test), num_steps)

        return SuiteTask(name, group, make)

    return (
        on_text("gru", "recurrent", tasks.rnn_lm, cell="gru"),
        on_text("lstm", "recurrent", tasks.rnn_lm, cell="lstm"),
        on_text("transformer", "attention", tasks.transformer_lm, depth=2),
    )


def _functions():
    def function(name, group, make_family, num_steps=500):
        def make():
            family = make_family()
            task_params = family.sample(jax.random.key(3))
            # One problem, so that the seeds of a task can be compared.
            return SuiteProblem(
                family._replace(sample=lambda key: task_params), Split((), ()), num_steps
            )

        return SuiteTask(name, group, make)

    return (
        function("quadratic", "convex", lambda: tasks.quadratic(dim=50, min_eig=1e-4, max_eig=1.0)),
        function("rosenbrock", "function", lambda: tasks.rosenbrock(dim=2)),
        function("rosenbrock_20", "function", lambda: tasks.rosenbrock(dim=20)),
    )


def _on_digits(family: TaskFamily, num_steps: int) -> SuiteProblem:
    digits = data.digits()
    return SuiteProblem(family, Split(digits.train, digits.test), num_steps)
