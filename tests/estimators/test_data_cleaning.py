"""Weights learned for examples tell clean labels from corrupted ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import data, estimators, implicit
from metaopt.core import BilevelProblem, Split, bilevel_training

SIZE, STEP = 400, 0.5


def corrupted_digits():
    """400 digits, 40 % of them with another label, 200 clean ones, a test set; the changed ones."""
    sets, rng = data.digits(), np.random.default_rng(0)

    def rows(pool, labels):
        inputs = np.reshape(pool.inputs, (len(pool.inputs), -1))[: len(labels)]
        return jnp.asarray(inputs - 0.3), jnp.asarray(labels)

    labels = np.array(sets.train.labels[:SIZE])
    changed = rng.permutation(SIZE) < 0.4 * SIZE
    labels[changed] = (labels[changed] + rng.integers(1, 10, changed.sum())) % 10
    pools = Split(rows(sets.train, labels), rows(sets.validation, sets.validation.labels))
    return pools, rows(sets.test, sets.test.labels), changed


def losses(params, rows):
    logits = rows[0] @ params["matrix"] + params["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1])


MODEL = {"matrix": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}
PROBLEM = BilevelProblem(
    lambda key: jax.tree.map(jnp.asarray, MODEL),
    lambda params, theta, data, key: (
        jnp.mean(jax.nn.sigmoid(theta) * losses(params, data.inner))
        + 1e-3 * optax.tree.norm(params, squared=True)
    ),
    lambda params, theta, data, key: jnp.mean(losses(params, data.outer)),
)


def descend(estimator, pools, *, learning_rate, num_steps=300):
    outer_opt = optax.adam(learning_rate)
    theta = jnp.zeros(SIZE)
    state = estimator.init(theta, pools, jax.random.key(0))

    def one(carry, key):
        theta, state, opt_state = carry
        estimate, state = estimator.estimate(theta, state, pools, key)
        updates, opt_state = outer_opt.update(estimate.grad, opt_state)
        return (optax.apply_updates(theta, updates), state, opt_state), None

    start, keys = (
        (theta, state, outer_opt.init(theta)),
        jax.random.split(jax.random.key(1), num_steps),
    )
    theta, state, _ = jax.jit(lambda carry: jax.lax.scan(one, carry, keys)[0])(start)
    return np.asarray(theta), state


def params_of(state):
    """The model in the state of any of the estimators; some have a task axis, of size one."""
    if hasattr(state, "episode"):
        state = state.episode.state.inner
    return jax.tree.map(lambda x, like: x.reshape(like.shape), state.params, MODEL)


def accuracy(params, rows):
    logits = rows[0] @ params["matrix"] + params["bias"][None]
    return float(jnp.mean(jnp.argmax(logits, axis=1) == rows[1]))


def area_under_curve(scores, positive):
    """Probability that a positive example has a higher score than a negative one."""
    return float(np.mean(scores[positive][:, None] > scores[~positive][None]))


@pytest.mark.slow
def test_learned_weights_find_corrupted_digits():
    pools, test, changed = corrupted_digits()
    common = {"step_size": STEP, "num_steps": 10}
    methods = {
        "f2sa": estimators.f2sa(
            PROBLEM, penalty=10.0, step_exponent=0, penalty_exponent=0, **common
        ),
        "neumann": estimators.stocbio(PROBLEM, num_terms=10, **common),
        "amigo": estimators.amigo(PROBLEM, num_system_steps=10, **common),
        "identity": estimators.sama(PROBLEM, optax.sgd(STEP), num_steps=10),
        "conjugate gradients": estimators.implicit(
            PROBLEM, inner_opt=optax.sgd(STEP), num_steps=10, solver=implicit.cg(max_steps=10)
        ),
        "unrolled": estimators.truncated_backprop(
            bilevel_training(PROBLEM, optax.sgd(STEP)), truncation=10, horizon=None, num_tasks=1
        ),
    }
    # Without an outer step all weights stay equal.
    plain = accuracy(params_of(descend(methods["neumann"], pools, learning_rate=0.0)[1]), test)
    for name, estimator in methods.items():
        theta, state = descend(estimator, pools, learning_rate=0.1)
        area, found = area_under_curve(theta, ~changed), accuracy(params_of(state), test)
        assert area > 0.9, name
        assert found > plain + 0.08, name
