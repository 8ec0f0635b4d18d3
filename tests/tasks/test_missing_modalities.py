import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import algorithms, core, tasks
from metaopt.data import Pool
from tests.helpers import standard_errors

ROWS = np.arange(1.0, 13.0).reshape(2, 6)  # Two examples of three modalities of two entries each.
MASKS = np.eye(3).repeat(2, axis=1)


def family() -> core.TaskFamily:
    """Linear regression on the two rows, whichever set is asked for."""

    def loss(params, task_params, batch, key):
        return jnp.mean((batch.inputs @ params - batch.labels) ** 2), ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.full(6, 0.1),
        batch=lambda data, task_params, key: Pool(jnp.asarray(ROWS), jnp.array([1.0, -1.0])),
        loss=loss,
    )


def supports(probability, count):
    """Inputs of many support sets, [count, 2, 3 modalities, 2 entries]."""
    partial = tasks.missing_modalities(family(), MASKS, probability=probability)
    data = tasks.episodes(()).inner
    draw = jax.jit(jax.vmap(lambda key: partial.batch(data, (), key).inputs))
    return np.asarray(draw(jax.random.split(jax.random.key(0), count))).reshape(count, 2, 3, 2)


def test_modalities_are_there_or_missing_as_often_as_asked_for():
    found = supports(0.25, 4000) / ROWS.reshape(1, 2, 3, 2)
    present = found[..., 0]
    np.testing.assert_allclose(np.unique(found), [0, 1])
    np.testing.assert_array_equal(present, found[..., 1])
    assert present.sum(axis=-1).min() == 1
    # One in three is always there, and the others in a quarter of all cases.
    assert standard_errors(present, np.full((2, 3), 1 / 3 + 2 / 3 * 0.25)) < 4
    both = present[..., 0] * present[..., 1]
    assert standard_errors(both, np.full(2, 2 / 3 * 0.25 + 1 / 3 * 0.25**2)) < 4


def test_query_sets_and_support_sets_with_all_modalities_are_those_of_the_family():
    np.testing.assert_array_equal(supports(1.0, 2), np.stack([ROWS.reshape(2, 3, 2)] * 2))
    partial = tasks.missing_modalities(family(), MASKS)
    batch = partial.batch(tasks.episodes(()).outer, (), jax.random.key(0))
    np.testing.assert_array_equal(batch.inputs, ROWS)


@pytest.mark.compiles
def test_steps_see_what_is_there_and_the_meta_gradient_all_of_it(x64):
    """One step on one modality, in closed form."""
    masks = np.ones((1, 1)) * np.array([1.0, 1, 0, 0, 0, 0])
    partial = tasks.missing_modalities(family(), masks)
    learner = algorithms.maml(partial, optax.sgd(0.01), num_steps=1, num_tasks=1)
    theta = jnp.linspace(-0.2, 0.3, 6)
    estimate, _ = jax.jit(learner.estimator.estimate)(
        theta, (), tasks.episodes(()), jax.random.key(0)
    )
    labels, seen, start = np.array([1.0, -1.0]), ROWS * masks, np.asarray(theta)
    adapted = start - 0.01 * seen.T @ (seen @ start - labels)
    residual = ROWS @ adapted - labels
    hessian = seen.T @ seen
    expected = (np.eye(6) - 0.01 * hessian) @ (ROWS.T @ residual)
    np.testing.assert_allclose(estimate.loss, np.mean(residual**2), rtol=1e-10)
    np.testing.assert_allclose(estimate.grad, expected, rtol=1e-10)


def test_bad_masks_and_data_are_refused():
    with pytest.raises(ValueError, match="missing_modalities: masks of shape"):
        tasks.missing_modalities(family(), np.zeros((2, 6)))
    with pytest.raises(ValueError, match="missing_modalities: masks of shape"):
        tasks.missing_modalities(family(), np.full((2, 6), 0.5))
    partial = tasks.missing_modalities(family(), MASKS)
    with pytest.raises(ValueError, match="missing_modalities: data is a tuple"):
        partial.batch((), (), jax.random.key(0))
