import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from metaopt.data import teacher_network


def linear_accuracy(hidden):
    pool = teacher_network(
        jax.random.key(0), num_classes=3, dim=3, num_examples=1000, hidden=hidden
    )
    x, y = np.asarray(pool.inputs), np.asarray(pool.labels)
    assert set(y) == {0, 1, 2}
    return LogisticRegression(C=1e4, max_iter=2000).fit(x, y).score(x, y)


def test_a_teacher_without_hidden_layers_is_linearly_separable():
    assert linear_accuracy(()) > 0.99


def test_a_teacher_with_hidden_layers_is_not():
    assert linear_accuracy((16, 16)) < 0.97


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="teacher_network: hidden=0 is below 1"):
        teacher_network(jax.random.key(0), num_classes=2, dim=2, num_examples=3, hidden=(4, 0))
