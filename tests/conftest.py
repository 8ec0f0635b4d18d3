"""Settings of every test: strict promotion, no key used twice, x64 on request."""

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def x64():
    """Runs a test in float64: the precision of oracles and central differences."""
    with jax.enable_x64(True):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What takes long to compile is slow."""
    for item in items:
        if item.get_closest_marker("compiles"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Tests that do little but compile do so in half of the time, without costly optimizations.

    Not a fixture, because those of a module are made before those of a test.
    """
    computes = item.get_closest_marker("slow") and not item.get_closest_marker("compiles")
    jax.config.update("jax_disable_most_optimizations", not computes)
