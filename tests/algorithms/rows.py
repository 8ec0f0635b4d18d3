"""Rows of `metaopt.algorithms` for the conformance tests: (names covered, thunk).

The thunk gives what `tests.registry` lists; learners give their estimator, theta and data. The
first name is the label; a name may have several rows.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt import algorithms, data, tasks

SHAPE = (3, 4, 2, 2, 1)


def parabolas():
    """A family of two parameters."""
    return tasks.quadratic(dim=2)


def episodes():
    """Three classes of four 2 x 2 images, as the data of few-shot families."""
    inputs = jax.random.normal(jax.random.key(0), SHAPE)
    return tasks.episodes(data.ClassPool(inputs))


def linear_few_shot():
    """2-way 1-shot classification of them by a linear map."""
    return tasks.few_shot(
        lambda key: {"w": jax.random.normal(key, (4, 2)), "b": jnp.zeros(2)},
        lambda params, x: x.reshape(len(x), -1) @ params["w"] + params["b"][None],
        pool_shape=SHAPE,
        num_ways=2,
        num_shots=1,
        num_queries=2,
    )


def of(learner, pool=()):
    """What is checked of a learner: its meta-gradient at its initial theta."""
    return learner.estimator, learner.init(jax.random.key(1)), pool


STEPS = {"num_steps": 2, "num_tasks": 2}

ALGORITHM_ROWS = [
    ("maml adapt", lambda: of(algorithms.maml(parabolas(), optax.sgd(0.1), **STEPS))),
    (
        "maml",
        lambda: of(algorithms.maml(linear_few_shot(), optax.sgd(0.1), **STEPS), episodes()),
    ),
    (
        "few_shot_scores",
        lambda: (
            lambda theta, data, key: (
                algorithms.few_shot_scores(
                    parabolas(), lambda theta, task_params, support, key: theta, num_tasks=2
                )(theta, data, key).loss
            ),
            (jnp.array([0.3, -0.2]), (), jax.random.key(0)),
        ),
    ),
]
