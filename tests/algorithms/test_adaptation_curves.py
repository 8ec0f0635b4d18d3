import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import adapt, adaptation_curves, few_shot_scores
from tests.algorithms.test_maml import CENTRE, CURVATURE, SHIFTS, parabolas

THETA = {"p": np.array([0.3, -0.7])}


def test_curves_are_the_query_losses_of_the_closed_form(x64):
    curves = adaptation_curves(parabolas(), optax.sgd, num_steps=4, num_tasks=2)
    run = jax.jit(curves)
    for rate in (0.1, 0.3):
        found = run(THETA, SHIFTS, jax.random.key(0), learning_rate=rate)
        shrink = (1 - rate * CURVATURE) ** np.arange(5)[:, None]
        start = np.asarray(THETA["p"])
        path = CENTRE + SHIFTS.inner + shrink * (start - CENTRE - SHIFTS.inner)
        losses = 0.5 * np.sum(CURVATURE * (path - CENTRE - SHIFTS.outer) ** 2, axis=1)
        np.testing.assert_allclose(found, np.stack([losses, losses]), rtol=1e-10)


def test_the_last_value_is_that_of_few_shot_scores(x64):
    """Up to which tasks are drawn: here all are one."""
    curves = adaptation_curves(parabolas(), optax.adam, num_steps=3, num_tasks=1)
    run = adapt(parabolas(), optax.adam(0.1), num_steps=3)
    scores = few_shot_scores(parabolas(), run, num_tasks=1)

    @jax.jit
    def both(theta):
        last = curves(theta, SHIFTS, jax.random.key(0), learning_rate=0.1)[0, -1]
        return last, scores(theta, SHIFTS, jax.random.key(1)).loss[0]

    np.testing.assert_allclose(*both(THETA), rtol=1e-12)


def test_other_measures_are_taken_of_what_the_family_reports(x64):
    family = parabolas()

    def loss(params, task_params, batch, key):
        return family.loss(params, task_params, batch, key)[0], params["p"][0]

    curves = adaptation_curves(
        family._replace(loss=loss),
        optax.sgd,
        num_steps=2,
        num_tasks=1,
        measure=lambda loss, aux: -aux,
    )
    found = jax.jit(curves)(THETA, SHIFTS, jax.random.key(0), learning_rate=0.0)
    np.testing.assert_allclose(found, jnp.full((1, 3), -0.3))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="adaptation_curves: num_steps must be at least 1"):
        adaptation_curves(parabolas(), optax.sgd, num_steps=0, num_tasks=1)
    with pytest.raises(ValueError, match="tasks_at_once=2 does not divide"):
        adaptation_curves(parabolas(), optax.sgd, num_steps=1, num_tasks=3, tasks_at_once=2)
