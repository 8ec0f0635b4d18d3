"""Hand-written update rules from the literature that optax lacks."""

from metaopt.optimizers._complex_momentum import (
    ComplexMomentumState,
    complex_momentum,
    scale_by_complex_momentum,
)
from metaopt.optimizers._shampoo import ShampooState, scale_by_shampoo, shampoo

__all__ = [
    "ComplexMomentumState",
    "ShampooState",
    "complex_momentum",
    "scale_by_complex_momentum",
    "scale_by_shampoo",
    "shampoo",
]
