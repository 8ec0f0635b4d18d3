import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from metaopt.aggregators._complementarity import dual_cone_weights, positive_entries


def by_enumeration(matrix, q):
    """The one set of entries on which s ≥ 0 and y ≥ 0."""
    size = len(q)
    for flags in itertools.product([False, True], repeat=size):
        inside = np.array(flags)
        s = np.zeros(size)
        s[inside] = np.linalg.solve(matrix[np.ix_(inside, inside)], -q[inside])
        if (s >= 0).all() and ((matrix @ s + q)[~inside] >= 0).all():
            return inside
    raise AssertionError("no solution")


@pytest.mark.usefixtures("x64")
def test_the_positive_entries_are_those_of_an_exhaustive_search():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(40, 5, 6))
    matrices = factors @ factors.transpose(0, 2, 1)
    qs = rng.normal(size=(40, 5))
    found = jax.jit(jax.vmap(positive_entries))(jnp.asarray(matrices), jnp.asarray(qs))
    expected = np.stack([by_enumeration(g, q) for g, q in zip(matrices, qs, strict=True)])
    np.testing.assert_array_equal(found, expected)
    assert 1 < expected.sum(axis=1).mean() < 4


@pytest.mark.usefixtures("x64")
def test_thirty_two_objectives_agree_with_nonnegative_least_squares():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(6, 32, 40)) * 10.0 ** rng.uniform(-1, 1, (6, 32, 1))
    gramians = root @ root.transpose(0, 2, 1)
    bounds = rng.uniform(size=(6, 32)) / 32
    found = jax.jit(jax.vmap(dual_cone_weights))(jnp.asarray(gramians), jnp.asarray(bounds))
    for gramian, bound, weights in zip(gramians, bounds, np.asarray(found), strict=True):
        upper = np.linalg.cholesky(gramian).T
        expected = bound + nnls(upper, -upper @ bound)[0]
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-9 * expected.max())
