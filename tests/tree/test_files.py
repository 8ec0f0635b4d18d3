import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tree
from tests.train.problems import equal_bits

TREE = {"file": jnp.arange(6.0).reshape(2, 3), "layers": ({"b": jnp.ones(2, jnp.bfloat16)}, 3)}


def test_leaves_are_named_by_their_paths():
    assert list(tree.named(TREE)) == ["file", "layers/0/b", "layers/1"]


def test_a_tree_comes_back_from_its_names():
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    back = tree.from_named(tree.named(TREE), like, what="test")
    assert equal_bits(back, jax.tree.map(jnp.asarray, TREE))


def test_numpy_reads_what_was_written(tmp_path):
    tree.write_arrays(tmp_path / "a.npz", tree.named(TREE))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert stored["layers/0/b"].dtype == np.float32
        np.testing.assert_array_equal(stored["file"], TREE["file"])


def test_what_numpy_wrote_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(3), y=np.array(2.0))
    arrays = tree.read_arrays(tmp_path / "a.npz")
    assert sorted(arrays) == ["x", "y"]
    np.testing.assert_array_equal(arrays["x"], np.arange(3))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 and no more"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is not a file of named arrays"):
        tree.read_arrays(tmp_path / "a.npz")


def test_pickles_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("a.npy", "w") as f:
        np.lib.format.write_array(f, np.array([{"x": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        tree.read_arrays(tmp_path / "a.npz")
