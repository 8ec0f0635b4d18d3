"""Pytree arithmetic that `optax.tree` lacks."""

from metaopt.tree._tree import all_finite, cast_like, sample_normal, where

__all__ = ["all_finite", "cast_like", "sample_normal", "where"]
