"""Trees as files of plain named arrays: a zip of `.npy` members, never a pickle."""

import io
import math
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
    """Reads what `write_arrays` wrote, also from strangers.

    Nothing is executed, and no more memory is taken than the file is long: an array must be as long
    as its header says, and compressed ones are refused.

    Raises:
        ValueError: if the file is no such archive, is damaged, is compressed or holds anything but
            arrays of numbers.
        OSError: if it cannot be read.
    """
    with open(file, "rb") as stream:
        longest = os.fstat(stream.fileno()).st_size
        try:
            with zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
                arrays = {
                    member.filename.removesuffix(".npy"): _read_array(archive, member, longest)
                    for member in members
                }
            if len(arrays) < len(members):
                raise ValueError("it has two arrays of one name")
        except Exception as error:  # What damaged archives raise is not documented.
            raise ValueError(f"{file} is not a file of named arrays: {error}.") from error
    return arrays


def _read_array(archive, member, longest) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed; write it by numpy.savez")
    # An archive may claim any size, and memory is taken for it before anything is read.
    if max(member.file_size, member.compress_size) > longest:
        raise ValueError(f"{member.filename} claims to be longer than the file")
    with archive.open(member) as opened:
        content = opened.read()
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, by_columns, dtype = read_header(stream)
    if dtype.kind not in "biuf":
        raise ValueError(f"{member.filename} holds {dtype}, which is no kind of number")
    start = stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"{member.filename} is not as long as its shape {shape} says")
    flat = np.frombuffer(content, dtype, offset=start)
    return flat.reshape(shape, order="F" if by_columns else "C").copy()
