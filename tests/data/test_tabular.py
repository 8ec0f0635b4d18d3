import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from metaopt.data import tabular

TABLES = {
    "iris": (150, 4, 3),
    "wine": (178, 13, 3),
    "breast_cancer": (569, 30, 2),
    "diabetes": (442, 10, 0),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_three_parts_are_the_whole_table_once_up_to_an_affine_map(name):
    rows, columns, num_classes = TABLES[name]
    dataset = tabular(name)
    parts = [dataset.train, dataset.validation, dataset.test]
    assert dataset.num_classes == num_classes
    assert [len(part.labels) for part in parts][1:] == [round(0.15 * rows)] * 2
    inputs = np.concatenate([part.inputs for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    assert inputs.dtype == np.float32
    assert inputs.shape == (rows, columns)
    raw_inputs, raw_labels = getattr(datasets, f"load_{name}")(return_X_y=True)

    def ranks(values):
        # An increasing map keeps the order of every column, whatever the order of the rows.
        return np.sort(np.argsort(np.argsort(values, axis=0), axis=0), axis=0)

    np.testing.assert_array_equal(ranks(inputs), ranks(raw_inputs))
    if num_classes:
        np.testing.assert_array_equal(np.bincount(labels), np.bincount(raw_labels))
        assert labels.dtype == jnp.int32
    else:
        assert labels.shape == (rows, 1)
        assert labels.dtype == np.float32


@pytest.mark.parametrize("name", TABLES)
def test_columns_have_mean_zero_and_variance_one_over_the_training_rows(name):
    dataset = tabular(name, seed=3)
    values = [dataset.train.inputs]
    if dataset.num_classes == 0:
        values.append(dataset.train.labels)
    for table in values:
        table = np.asarray(table, np.float64)
        np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(table.var(axis=0), 1, rtol=1e-5)
    # The held-out rows had no part in it.
    assert abs(np.asarray(dataset.test.inputs, np.float64).mean(axis=0)).max() > 1e-3


def test_the_seed_decides_the_split_and_unknown_tables_are_refused():
    first, again, other = (tabular("wine", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train.labels, again.train.labels)
    assert (first.train.labels != other.train.labels).any()
    with pytest.raises(ValueError, match="tabular: name='titanic' is unknown; choose from"):
        tabular("titanic")
