"""A small network on fixed points: compiles quickly, for derivatives and reductions in x64."""

import jax
import numpy as np

from metaopt import core, tasks

INPUTS = np.array([[-3.0], [-1.0], [0.5], [2.0], [4.0]])
DATA = core.Split(
    (INPUTS, 2.0 * np.sin(INPUTS - 0.4)),
    (INPUTS + 0.3, 2.0 * np.sin(INPUTS - 0.1)),
)


def small_network() -> core.TaskFamily:
    """Two layers of tanh, a body and a head; `DATA` are the support and the query set."""
    network = tasks.sinusoid_regression(hidden=(3,), activation="tanh")

    def loss(params, task_params, batch, key):
        del task_params, key
        body, head = params
        features = jax.nn.tanh(batch[0] @ body["w"] + body["b"][None])
        return ((features @ head["w"] + head["b"][None] - batch[1]) ** 2).mean(), ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: network.init(task_params, key),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


def small_params():
    """Parameters of it, none of them zero."""
    rng = np.random.default_rng(0)
    layers = ((1, 3), (3, 1))
    return tuple({"w": rng.normal(size=s), "b": rng.normal(size=s[1])} for s in layers)
