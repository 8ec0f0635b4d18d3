import pytest

from tests.optimizers import golden_solvers


@pytest.mark.parametrize("name", golden_solvers.RECORD["runs"])
def test_convex_solvers_take_the_steps_of_a_published_implementation(x64, name):
    assert golden_solvers.difference(name) < 1e-10
