"""Weights as files: our own format, and those that learned optimizers are published in.

Ours is a zip of plain arrays, `.npz`, with one more member, `__metaopt__`: a JSON header that names
the optimizer, the settings it was built and meta-trained with, and hashes of these and of the
weights. Published checkpoints are msgpack files of nested dictionaries of arrays (flax's state
format). Neither is ever unpickled, so that no file can run code.
"""

import hashlib
import json
import os
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from metaopt import tree
from metaopt.core import LearnedOptimizer
from metaopt.learned._published import from_published

HEADER = "__metaopt__"
FORMAT = 1


def save(
    file: str | os.PathLike,
    theta: PyTree,
    *,
    optimizer: str,
    settings: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes weights with what they are and where they come from.

    Args:
        file: where to write, `.npz`; replaced at once, never half-written.
        theta: weights, any pytree of arrays; bfloat16 is stored as float32.
        optimizer: the factory's name in `metaopt.learned`, such as `"celo2"`.
        settings: the factory's keyword arguments; anything JSON can hold.
        training: how the weights were obtained, such as a run's settings; anything JSON can hold.
        overwrite: replace an existing file.

    Raises:
        ValueError: if `optimizer` is no name in `metaopt.learned`, or `theta` is not finite.
        FileExistsError: if there is such a file and `overwrite` is not set.
    """
    path = pathlib.Path(file)
    _factory("save", optimizer)
    if path.exists() and not overwrite:
        raise FileExistsError(f"save: {path} exists; choose another name or pass overwrite=True.")
    arrays = {name: np.asarray(x) for name, x in tree.named(theta).items()}
    bad = [name for name, x in arrays.items() if not np.isfinite(x.astype(np.float64)).all()]
    if bad:
        raise ValueError(f"save: theta is not finite in {', '.join(bad)}; save an earlier one.")
    from metaopt import __version__

    training = _plain(training or {})
    header = {
        "format": FORMAT,
        "metaopt": __version__,
        "optimizer": optimizer,
        "settings": _plain(settings or {}),
        "training": training,
        "training_sha256": _hash(json.dumps(training, sort_keys=True).encode()),
        "weights_sha256": _hash_arrays(arrays),
    }
    content = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    tree.write_arrays(path, {HEADER: content, **arrays})


def load(file: str | os.PathLike, optimizer: LearnedOptimizer) -> PyTree:
    """Reads weights of either format for a given learned optimizer.

    Args:
        file: what `save` wrote; or a published checkpoint of the per-parameter MLP, the MLP with
            Adafactor features, RNN-MLP, LSTM-controlled Adam, VeLO, Celo or Celo2.
        optimizer: what the weights are for; names and shapes must be those of its `init`.

    Returns:
        `theta`, with the structure and dtypes of `optimizer.init`.

    Raises:
        ValueError: if the file is of neither format, was damaged or is of a newer version; or if
            names or shapes differ from the optimizer's: the message lists the difference.
        OSError: if it cannot be read.
    """
    path = pathlib.Path(file)
    like = jax.eval_shape(optimizer.init, jax.random.key(0))
    if _is_zip(path):
        _, arrays = _read(path)
    else:
        arrays = tree.named(from_published(_read_published(path), what=f"load: {path}"))
    return tree.from_named(arrays, like, what=f"load: {path}")


def weights_info(file: str | os.PathLike) -> dict[str, Any]:
    """The header of a file that `save` wrote.

    Args:
        file: the file.

    Returns:
        A dictionary with `"optimizer"`, `"settings"`, `"training"`, `"metaopt"` (the version that
        wrote it), `"format"`, `"training_sha256"` and `"weights_sha256"`.

    Raises:
        ValueError: as in `load`.
    """
    header, _ = _read(pathlib.Path(file))
    return header


def build(header: Mapping[str, Any], **changes: Any) -> LearnedOptimizer:
    """The optimizer that a header names, some of its settings changed."""
    return _factory("build", header["optimizer"])(**{**header["settings"], **changes})


def _read(path):
    arrays = tree.read_arrays(path)
    if HEADER not in arrays:
        raise ValueError(
            f"load: {path} has no header; for a run's theta.npz use metaopt.train.load_theta."
        )
    header = _header(arrays.pop(HEADER), path)
    if header["format"] > FORMAT:
        raise ValueError(
            f"load: {path} has format {header['format']}, written by metaopt {header['metaopt']}; "
            f"this version reads up to {FORMAT}: upgrade metaopt."
        )
    if _hash_arrays(arrays) != header["weights_sha256"]:
        raise ValueError(f"load: the weights in {path} are not those it was written with.")
    return header, arrays


def _header(content, path) -> dict[str, Any]:
    """The header with the kinds of entries that `save` writes."""
    kinds = {
        "format": int,
        "metaopt": str,
        "optimizer": str,
        "settings": dict,
        "weights_sha256": str,
    }
    try:
        header = json.loads(content.tobytes())
        is_whole = all(type(header[entry]) is kind for entry, kind in kinds.items())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"load: the header of {path} is damaged ({error}).") from error
    if not is_whole:
        raise ValueError(f"load: the header of {path} is not one that save writes.")
    return header


def _read_published(path) -> Any:
    from flax import serialization

    content = path.read_bytes()
    try:
        stored = serialization.msgpack_restore(content)
    except Exception as error:
        raise ValueError(
            f"load: {path} is neither an archive of arrays nor a msgpack checkpoint ({error})."
        ) from error
    if not isinstance(stored, dict):
        raise ValueError(f"load: {path} holds a {type(stored).__name__}, not named arrays.")
    return stored


def _is_zip(path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _factory(function, name):
    from metaopt import learned

    factory: Any = getattr(learned, name) if name in learned.__all__ else object
    # A file may name anything: only makers of optimizers are called.
    if typing.get_type_hints(factory).get("return") is not LearnedOptimizer:
        raise ValueError(f"{function}: optimizer={name!r} makes no learned optimizer of metaopt.")
    return factory


def _plain(content):
    return json.loads(json.dumps(content))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _hash_arrays(arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        x = np.asarray(arrays[name])
        # What the file holds: it has no bfloat16.
        x = x if x.dtype.kind in "fiub" else x.astype(np.float32)
        digest.update(f"{name} {x.dtype.str} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
