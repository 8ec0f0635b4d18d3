"""Hand-written update rules from the literature that optax lacks."""

from metaopt.optimizers._complex_momentum import (
    ComplexMomentumState,
    complex_momentum,
    scale_by_complex_momentum,
)

__all__ = ["ComplexMomentumState", "complex_momentum", "scale_by_complex_momentum"]
