import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt.algorithms import few_shot_scores, prototypes, soft_clusters, transductive
from metaopt.algorithms._transductive import neighbour_affinity
from tests.algorithms.embeddings import embed, family, init, pool

LABELS = np.array([0, 1, 1])


def examples(seed, num_queries=7):
    key_support, key_queries = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key_queries, (num_queries, 2)), jax.random.normal(key_support, (3, 2))


def by_hand(queries, support, *, temperature, pull, num_rounds):
    """The rounds in NumPy, one example and class at a time, and F after each."""
    both = np.concatenate([support, queries])
    similar = affinity_by_hand(both)
    fixed = np.eye(2)[LABELS]
    p = np.concatenate([fixed, np.full((len(queries), 2), 0.5)])
    means = np.stack([support[LABELS == k].mean(0) for k in range(2)])

    def energy(p, means):
        total = 0.0
        for i, z in enumerate(both):
            for k in range(2):
                total += p[i, k] * np.sum((z - means[k]) ** 2) / temperature
                total += p[i, k] * np.log(p[i, k]) if p[i, k] > 0 else 0.0
            for j in range(len(both)):
                total -= 0.5 * pull * similar[i, j] * p[i] @ p[j]
        return total

    found = [energy(p, means)]
    for _ in range(num_rounds):
        new = p.copy()
        for i in range(len(support), len(both)):
            logits = [
                -np.sum((both[i] - means[k]) ** 2) / temperature + pull * similar[i] @ p[:, k]
                for k in range(2)
            ]
            new[i] = np.exp(logits) / np.exp(logits).sum()
        p = new
        means = (p.T @ both) / p.sum(0)[:, None]
        found.append(energy(p, means))
    return p[len(support) :], means, found


def affinity_by_hand(both):
    distance = ((both[:, None] - both[None]) ** 2).sum(-1)
    linked = np.zeros_like(distance)
    for i, row in enumerate(distance):
        nearest = [j for j in np.argsort(row, kind="stable") if j != i][:3]
        linked[i, nearest] = linked[nearest, i] = 1.0
    degree = linked.sum(1)
    return 0.5 * (np.eye(len(both)) + linked / np.sqrt(np.outer(degree, degree)))


def test_rounds_agree_with_numpy(x64):
    queries, support = examples(0)
    setting = {"temperature": 0.7, "pull": 0.9, "num_rounds": 3}
    found = jax.jit(lambda q, s: soft_clusters(q, s, LABELS, num_ways=2, **setting))(
        queries, support
    )
    for actual, expected in zip(
        found, by_hand(np.asarray(queries), np.asarray(support), **setting), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


@jax.jit
def objective(seed, temperature, pull):
    key_support, key_queries = jax.random.split(jax.random.key(seed))
    queries = jax.random.normal(key_queries, (12, 2))
    support = jax.random.normal(key_support, (3, 2))
    return soft_clusters(
        queries, support, LABELS, num_ways=2, temperature=temperature, pull=pull
    ).objective


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 5.0), st.floats(0.0, 20.0))
def test_the_objective_never_grows(seed, temperature, pull):
    with jax.enable_x64(True):
        values = np.asarray(objective(seed, temperature, pull))
    assert np.all(np.diff(values) <= 1e-9 * np.abs(values[:-1]))


def test_the_affinity_of_neighbours_is_positive_semidefinite_and_the_plain_one_is_not(x64):
    features = jax.random.normal(jax.random.key(1), (15, 2))
    found = np.asarray(neighbour_affinity(features))
    np.testing.assert_allclose(found, affinity_by_hand(np.asarray(features)), rtol=1e-12)
    eigenvalues = np.linalg.eigvalsh(found)
    assert eigenvalues.min() > -1e-12
    assert eigenvalues.max() < 1 + 1e-12
    assert np.linalg.eigvalsh(2 * found - np.eye(15)).min() < -0.1


def test_unlabelled_examples_move_a_prototype_that_one_example_misplaces(x64):
    rng = np.random.default_rng(0)
    queries = np.concatenate([rng.normal(size=(40, 2)) * 0.3, rng.normal(size=(40, 2)) * 0.3 + 3])
    support = np.array([[0.0, 2.0], [2.5, 2.5], [3.5, 3.5]])
    truth = np.repeat([0, 1], 40)
    found = soft_clusters(jnp.asarray(queries), jnp.asarray(support), LABELS, num_ways=2)
    assert (np.asarray(found.assignments).argmax(1) == truth).all()
    # The clusters are so far apart that assignments are 0 or 1, and prototypes plain means.
    expected = [
        np.concatenate([queries[truth == way], support[LABELS == way]]).mean(axis=0)
        for way in range(2)
    ]
    np.testing.assert_allclose(found.prototypes, expected, rtol=1e-6)


def test_one_round_at_a_low_temperature_is_the_nearest_prototype():
    way = transductive(family(), embed, temperature=1e-3, num_rounds=1)
    theta = init(jax.random.key(1))

    @jax.jit
    def both(theta):
        scores = [
            few_shot_scores(made, adapt, num_tasks=4)(theta, pool(), jax.random.key(2))
            for made, adapt in (way, (family(), prototypes(family(), embed).adapt))
        ]
        return [score.aux.accuracy for score in scores]

    first, second = both(theta)
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_clusters_keep_an_unbalanced_query_set(x64):
    """Nothing forces equal clusters: nine queries of one class, one of the other."""
    queries = np.concatenate([np.zeros((9, 2)), np.ones((1, 2))]) + 0.01 * np.arange(20).reshape(
        10, 2
    )
    support = np.array([[0.1, 0.0], [1.0, 1.1], [1.1, 1.0]])
    found = soft_clusters(jnp.asarray(queries), jnp.asarray(support), LABELS, num_ways=2)
    np.testing.assert_array_equal(found.assignments.argmax(1), [0] * 9 + [1])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="transductive: temperature must be positive"):
        transductive(family(), embed, temperature=0.0)
    with pytest.raises(ValueError, match="num_neighbours=3, but there are only 3 examples"):
        neighbour_affinity(jnp.ones((3, 2)))
