import jax
import pytest


@pytest.fixture
def quick():
    """Half of the compilation time, which is what these tests take."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
