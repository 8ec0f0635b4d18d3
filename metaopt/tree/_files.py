"""Trees as files of plain named arrays: a zip of `.npy` members, never a pickle."""

import io
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their paths, the parts of a path joined by "/"."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def from_named(arrays: Mapping[str, Any], like: PyTree, *, what: str) -> PyTree:
    """The inverse of `named`, with the structure and dtypes of `like`.

    Args:
        arrays: arrays by name.
        like: a tree of the expected structure; shapes and dtypes suffice.
        what: begins the message of an error, such as `"load: weights.npz"`.

    Returns:
        A tree of jax arrays.

    Raises:
        ValueError: if names or shapes differ; the message lists the difference.
    """
    expected = named(like)
    problems = [f"missing {n}" for n in sorted(expected.keys() - arrays.keys())]
    problems += [f"unexpected {n}" for n in sorted(arrays.keys() - expected.keys())]
    problems += [
        f"{n} has shape {np.shape(arrays[n])}, expected {np.shape(x)}"
        for n, x in expected.items()
        if n in arrays and np.shape(arrays[n]) != np.shape(x)
    ]
    if problems:
        raise ValueError(f"{what} does not fit: {'; '.join(problems)}.")
    leaves = [jnp.asarray(arrays[name], x.dtype) for name, x in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def write_arrays(file: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays; the file is replaced at once, never half-written.

    Equal arrays make equal files. bfloat16, which the format lacks, is stored as float32.
    """
    path = pathlib.Path(file)
    partial = path.with_name(path.name + ".partial")
    # Not `np.savez`: its own arguments would collide with arrays of the same names.
    with zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            array = np.asarray(array)
            if array.dtype == jnp.bfloat16:
                array = array.astype(np.float32)
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    partial.replace(path)


def read_arrays(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote.

    Raises:
        ValueError: if the file is no such archive, is damaged or holds pickled objects.
        OSError: if it cannot be read.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                arrays[name.removesuffix(".npy")] = array
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a file of named arrays: {error}.") from error
    return arrays
