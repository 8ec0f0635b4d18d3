"""A network small enough for central differences, and what learners that adapt it are given."""

import jax
import jax.numpy as jnp

from metaopt import core, tasks

FAMILY = tasks.sinusoid_regression(hidden=(3,), activation="tanh", batch_size=5)._replace(
    normalise=core.keep_finite
)


def task():
    """One sinusoid."""
    return FAMILY.sample(jax.random.key(10))


def params():
    """Initial parameters, in the precision in force."""
    return FAMILY.init(task(), jax.random.key(11))


def apply(params, inputs):
    """The network of `FAMILY`."""
    first, last = params
    return jnp.tanh(inputs @ first["w"] + first["b"][None]) @ last["w"] + last["b"][None]


def support_set(key=12):
    """A batch of the task."""
    return FAMILY.batch((), task(), jax.random.key(key))


def perturbed(tree, key=13, scale=0.3):
    """The tree plus noise: nothing stays at a special value."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    noise = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten([x + n for x, n in zip(leaves, noise, strict=True)])


def estimate(learner, theta, data=()):
    """A meta-gradient; the key makes all learners see the same tasks."""
    return jax.jit(learner.estimator.estimate)(theta, (), data, jax.random.key(14))[0]
