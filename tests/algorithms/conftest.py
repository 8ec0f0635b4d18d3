import pathlib

import pytest

# Files whose tests are quick to compile; of the others only refusals and plain arithmetic are fast
# tests, because an adaptation with its derivative takes seconds to compile.
QUICK_FILES = ("test_maml", "test_search", "test_evolution", "test_returns", "test_transductive")
QUICK_WORDS = ("refused", "by_hand", "numpy", "closed_form", "at_first", "identity", "is_a_mean")


def pytest_collection_modifyitems(items):
    """Moves what takes long to compile to the slow tests."""
    here = pathlib.Path(__file__).parent
    for item in items:
        is_ours = item.path.parent == here and item.path.stem not in QUICK_FILES
        if not is_ours or any(word in item.name for word in QUICK_WORDS):
            continue
        # Those that are marked slow by themselves train.
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.compiles)
            item.add_marker(pytest.mark.slow)
