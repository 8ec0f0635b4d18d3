"""Pytree arithmetic that `optax.tree` lacks, and trees as files."""

from metaopt.tree._files import from_named, named, read_arrays, write_arrays
from metaopt.tree._reproducible import reproducible_mean
from metaopt.tree._tree import all_finite, cast_like, sample_normal, where

__all__ = [
    "all_finite",
    "cast_like",
    "from_named",
    "named",
    "read_arrays",
    "reproducible_mean",
    "sample_normal",
    "where",
    "write_arrays",
]
