"""One row per pure function of `metaopt.eval`, for the conformance tests.

`EVAL_ROWS`: (name, thunk), the thunk giving (function, arguments). A name may have several rows.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from metaopt import eval as evaluation
from metaopt.core import LearnedOptimizer
from tests.estimators import toys
from tests.eval.families import noisy_quadratic

sgd = LearnedOptimizer(
    init=lambda key: jnp.array(0.1), optimizer=lambda theta, *, num_steps=None: optax.sgd(theta)
)


def probe():
    """Mean loss of gradient descent; `theta` is the learning rate."""
    function = evaluation.probe(noisy_quadratic(), sgd, num_steps=4, num_tasks=2)
    return function, (jnp.array(0.1), (), jax.random.key(0))


def baseline(index):
    """Parameters after two steps, as a function of learning rate and gradients."""
    make = evaluation.baselines(5, warmup_steps=1)[index].make

    def two_steps(learning_rate, grads):
        optimizer = make(learning_rate)
        params = jax.tree.map(jnp.ones_like, grads)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return two_steps, (jnp.array(0.1), {"weight": jnp.array([1.0, -2.0]), "bias": jnp.array(3.0)})


def learning_curve():
    """Curves of gradient descent, as a function of learning rate, data and key."""

    def curves(learning_rate, data, key):
        optimizer = optax.sgd(learning_rate)
        return evaluation.learning_curve(
            noisy_quadratic(), optimizer, data, key, num_steps=3, num_seeds=2, num_eval_batches=2
        )

    return curves, (jnp.array(0.1), (), jax.random.key(0))


def cosine():
    """A learning rate, as a function of the peak and the step."""

    def at(learning_rate, step):
        return evaluation.cosine(learning_rate, 6, warmup_steps=2)(step)

    return at, (jnp.array(0.1), jnp.array(3))


def lyapunov():
    """Growth of a difference, as a function of theta."""

    def growth(theta, key):
        return evaluation.lyapunov(toys.logistic_map(), theta, (), key, num_steps=3)

    return growth, (jnp.array(3.7), jax.random.key(0))


def loss_slice():
    """Losses along a line, as a function of theta."""

    def losses(theta, direction, key):
        return evaluation.loss_slice(
            lambda theta, data, key: (
                jnp.sum(theta**2) + 0 * jax.random.normal(key, (), theta.dtype)
            ),
            theta,
            direction,
            (),
            key,
            offsets=jnp.linspace(-1, 1, 3).astype(theta.dtype),
        )

    return losses, (jnp.array([0.3, -0.2]), jnp.array([1.0, 2.0]), jax.random.key(0))


EVAL_ROWS = [
    ("baselines", functools.partial(baseline, 0)),
    ("baselines", functools.partial(baseline, 1)),
    ("baselines", functools.partial(baseline, 2)),
    ("cosine", cosine),
    ("learning_curve", learning_curve),
    ("loss_slice", loss_slice),
    ("lyapunov", lyapunov),
    ("probe", probe),
]
