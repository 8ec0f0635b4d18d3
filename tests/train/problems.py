"""A small run: Celo2 on a quadratic family by PES, with a probe."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import core, estimators, eval, learned, tasks, train

FAMILY = tasks.quadratic(dim=3)
OPTIMIZER = learned.hyperparameters(
    optax.sgd, learning_rate=learned.positive(0.05), momentum=learned.fraction(0.5)
)


def estimator(num_tasks=4):
    system = core.training(FAMILY, OPTIMIZER)
    return estimators.pes(system, sigma=0.05, truncation=5, horizon=20, num_tasks=num_tasks)


def run(directory=None, *, num_steps=20, num_tasks=4, data=(), **changes):
    """Meta-trains; two runs that differ in `num_steps` alone are the same run."""
    arguments = {
        "outer_opt": optax.adam(0.05),
        "probes": {
            "quadratic": train.Probe(eval.probe(FAMILY, OPTIMIZER, num_steps=20, num_tasks=4))
        },
        "probe_every": 5,
        "checkpoint_every": 5,
        "settings": {"name": "tiny"},
        **changes,
    }
    return train.meta_train(
        {"quadratic": estimator(num_tasks)},
        OPTIMIZER.init(jax.random.key(0)),
        {"quadratic": data},
        jax.random.key(1),
        num_steps=num_steps,
        directory=directory,
        **arguments,
    )


def equal_bits(first, second) -> bool:
    """Whether two trees hold the same bits."""

    def same(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        return x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()

    return jax.tree.all(jax.tree.map(same, first, second))
