"""Compilation is the cost of these tests; what they check does not depend on optimizations."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation():
    """Half of the compilation time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
