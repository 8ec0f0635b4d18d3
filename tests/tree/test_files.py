import io
import tracemalloc
import zipfile

import hypothesis
import hypothesis.strategies as st
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
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.array(2.0))
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
    with pytest.raises(ValueError, match="holds object, which is no kind of number"):
        tree.read_arrays(tmp_path / "a.npz")


def test_compressed_arrays_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**6))
    with pytest.raises(ValueError, match="is compressed; write it by numpy.savez"):
        tree.read_arrays(tmp_path / "a.npz")


def test_a_shape_that_the_file_does_not_hold_takes_no_memory(tmp_path):
    content = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
    with pytest.raises(ValueError, match="not as long as its shape"):
        tree.read_arrays(tmp_path / "a.npz")


def test_a_member_longer_than_the_file_takes_no_memory(tmp_path):
    tree.write_arrays(tmp_path / "a.npz", {"a": np.zeros(2)})
    content = bytearray((tmp_path / "a.npz").read_bytes())
    directory = content.index(b"PK\x01\x02")  # Sizes are its fields at 20 and 24.
    content[directory + 20 : directory + 28] = b"\xff\xff\xff\x3f" * 2
    (tmp_path / "a.npz").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="claims to be longer than the file"):
        tree.read_arrays(tmp_path / "a.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_two_arrays_of_one_name_are_refused(tmp_path):
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", content.getvalue())
    with pytest.raises(ValueError, match="two arrays of one name"):
        tree.read_arrays(tmp_path / "a.npz")


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    changes=st.lists(
        st.tuples(st.integers(0, 10**4), st.binary(min_size=0, max_size=9), st.integers(0, 9)),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_file_is_read_as_arrays_or_refused(tmp_path_factory, changes):
    file = tmp_path_factory.mktemp("damaged") / "a.npz"
    tree.write_arrays(file, tree.named(TREE))
    content = bytearray(file.read_bytes())
    for at, new, dropped in changes:
        at %= len(content)
        content[at : at + dropped] = new
    file.write_bytes(content)
    try:
        arrays = tree.read_arrays(file)
    except ValueError as error:
        assert "is not a file of named arrays" in str(error)  # noqa: PT017
    else:
        assert all(isinstance(x, np.ndarray) for x in arrays.values())
