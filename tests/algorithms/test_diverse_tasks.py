import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.algorithms import RelatedTasks, diverse_tasks, k_dpp, task_kernel
from metaopt.algorithms._diverse_tasks import _symmetric_polynomials
from tests.helpers import standard_errors


def draws(kernel, size, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: k_dpp(kernel, key, size=size)))(keys))


def test_sets_have_the_probabilities_of_their_determinants(x64):
    root = np.random.default_rng(0).normal(size=(5, 4))
    kernel = root @ root.T  # of rank 4 only
    sets = [list(s) for s in itertools.combinations(range(5), 3)]
    weights = np.array([np.linalg.det(kernel[np.ix_(s, s)]) for s in sets])
    expected = weights / weights.sum()
    found = np.sort(draws(jnp.asarray(kernel), 3, 20_000), axis=1)
    seen = np.stack([np.all(found == s, axis=1) for s in sets], axis=1)
    assert seen.any(axis=1).all()
    assert standard_errors(seen, expected) < 4
    assert standard_errors(seen, np.full(10, 0.1)) > 4


def test_a_diagonal_kernel_of_ones_is_uniform_without_replacement(x64):
    found = draws(jnp.eye(4), 2, 4000)
    assert np.all(found[:, 0] != found[:, 1])
    seen = np.stack([np.any(found == k, axis=1) for k in range(4)], axis=1)
    assert standard_errors(seen, np.full(4, 0.5)) < 4


def test_elementary_symmetric_polynomials_are_those_of_all_subsets(x64):
    values = np.array([0.3, 1.2, 2.0, 0.7])
    table = np.asarray(_symmetric_polynomials(jnp.asarray(values), 3))
    for n in range(5):
        for k in range(4):
            expected = sum(math.prod(s) for s in itertools.combinations(values[:n], k))
            np.testing.assert_allclose(table[n, k], expected, atol=1e-14)


def test_more_than_the_rank_still_gives_different_tasks():
    found = draws(jnp.ones((6, 6)), 3, 50)
    assert all(len(set(row)) == 3 for row in found)


GROUPS = np.repeat(np.arange(4), [70, 20, 7, 3])


def errors_of_batches(size, seed):
    """Distances of the mean gradient of a batch to two targets, drawn diversely and uniformly."""
    rng = np.random.default_rng(seed)
    gradients = 4 * rng.normal(size=(4, 10))[GROUPS] + rng.normal(size=(100, 10))
    balanced = np.mean([gradients[GROUPS == g].mean(0) for g in range(4)], axis=0)
    diverse = draws(task_kernel(jnp.asarray(gradients), width=2.0), size, 400, seed)
    uniform = np.stack([rng.permutation(100)[:size] for _ in range(400)])
    found = {}
    for name, batches in (("diverse", diverse), ("uniform", uniform)):
        means = gradients[batches].mean(axis=1)
        found[name] = [
            np.linalg.norm(means - target, axis=-1).mean()
            for target in (balanced, gradients.mean(0))
        ]
        found[name].append(np.mean([len(set(GROUPS[b])) for b in batches]))
    return np.array([found["diverse"], found["uniform"]])


@pytest.mark.parametrize("size", [4, 8])
def test_diverse_batches_are_nearer_to_the_balanced_gradient_and_further_from_the_mean(x64, size):
    """The balanced one is the mean over kinds of tasks; rare kinds count as much as others."""
    found = np.mean([errors_of_batches(size, seed) for seed in range(3)], axis=0)
    diverse, uniform = found
    assert diverse[0] <= 0.75 * uniform[0]
    assert diverse[1] > uniform[1]
    assert diverse[2] > uniform[2]


def test_an_estimate_is_the_mean_over_the_tasks_drawn(x64):
    centres = jnp.array([[1.0, 0.0], [0.0, 3.0], [-2.0, 1.0]])
    estimator = diverse_tasks(
        lambda theta, index, data, key: jnp.sum((theta - data[index]) ** 2), num_tasks=3
    )
    pools = RelatedTasks(centres, task_kernel(centres))
    theta = jnp.array([0.5, 0.5])
    estimate, _ = jax.jit(estimator.estimate)(theta, (), pools, jax.random.key(0))
    np.testing.assert_allclose(estimate.grad, 2 * (theta - centres.mean(0)), rtol=1e-10)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="size=4 exceeds the 3 rows"):
        k_dpp(jnp.eye(3), jax.random.key(0), size=4)
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1"):
        diverse_tasks(lambda theta, index, data, key: theta, num_tasks=0)
